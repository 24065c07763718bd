//! Makes room for services: maps that are nearly full, or too small, are replaced by larger ones.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tracing::{error, info};

use super::ServiceReconciler;
use crate::{
    datapath::{
        Datapath, Grown,
        room::{Part, Room},
    },
    model::plan::IpFamily,
    observe::events::Event,
    sync::Round,
};

/// After a refusal larger maps are not tried again for this long: programs are loaded for each attempt.
const REST: Duration = Duration::from_secs(60);

/// When maps may grow.
#[derive(Debug, Default)]
pub(super) struct Growing {
    refused: Option<Instant>,
    /// The same for maps of flows, which take far more memory: others grow meanwhile.
    refused_flows: Option<Instant>,
    failure: Option<String>,
}

impl Growing {
    /// Those of the full parts that may grow now.
    fn growable(&self, full: &BTreeSet<Part>) -> BTreeSet<Part> {
        let rests = is_recent(self.refused_flows);
        full.iter().copied().filter(|part| !(rests && matches!(part, Part::Flows(_)))).collect()
    }

    /// Takes the result of an attempt.
    fn attempted(&mut self, has_flows: bool, failure: Option<String>) {
        let refused = failure.is_some().then(Instant::now);
        if has_flows {
            self.refused_flows = refused;
        } else {
            self.refused = refused;
        }
        self.failure = failure;
    }
}

fn is_recent(refused: Option<Instant>) -> bool {
    refused.is_some_and(|refused| refused.elapsed() < REST)
}

impl ServiceReconciler {
    /// Brings services into the maps, and makes room for those that do not fit. True if programs must be attached again.
    ///
    /// # Errors
    /// When the agent must be started again.
    pub(super) async fn apply_services(&mut self, datapath: &mut Datapath) -> Result<(Round, bool)> {
        let mut round = self.sync.apply(&mut datapath.services);
        let mut has_lost_hooks = false;
        while let Some(room) = self.wanted_room(datapath, &round.full) {
            let Some(lost) = self.grow(datapath, &room).await? else { break };
            has_lost_hooks |= lost;
            if !round.full.is_empty() {
                round = round.followed_by(self.sync.apply(&mut datapath.services));
            }
        }
        Ok((round, has_lost_hooks))
    }

    /// How much room there should be, if that is more than there is.
    fn wanted_room(&self, datapath: &Datapath, full: &BTreeSet<Part>) -> Option<Room> {
        let (room, used) = (datapath.services.room(), datapath.services.used());
        let full = self.growing.growable(full);
        if full.is_empty() && !room.is_short(&used) {
            return None;
        }
        if is_recent(self.growing.refused) {
            return None;
        }
        room.grown(&used.max(&self.sync.demand()), &full)
    }

    /// Replaces maps; true if programs must be attached again, `None` if the maps stay unchanged.
    async fn grow(&mut self, datapath: &mut Datapath, room: &Room) -> Result<Option<bool>> {
        info!("maps are full or nearly, or a family gets its first service: making larger ones");
        let before = datapath.services.room();
        let grows = |part| room.of(part) > before.of(part);
        let has_flows = IpFamily::ALL.into_iter().any(|family| grows(Part::Flows(family)));
        let growth = datapath.growth(room);
        let loaded = tokio::task::spawn_blocking(move || growth.load());
        let grown = match loaded.await.context("making larger maps ended unexpectedly")? {
            Ok(larger) => datapath.move_to(larger)?,
            Err(error) => Grown::Refused(error),
        };
        let failure = match &grown {
            Grown::Done(_) => None,
            Grown::Refused(error) => Some(format!("maps of services cannot grow: {error:#}")),
        };
        self.reports.metrics.maps_grew(failure.is_none());
        if let Some(failure) =
            failure.as_ref().filter(|failure| self.growing.failure.as_ref() != Some(failure))
        {
            error!("{failure}; trying again after {} s", REST.as_secs());
            self.reports.events.send(Event::of_node("MapsCannotGrow", "Grow", failure));
        }
        self.reports.health.set_problems("maps", failure.clone().into_iter().collect());
        self.growing.attempted(has_flows, failure);
        Ok(match grown {
            Grown::Done(lost) => Some(!lost.is_empty()),
            Grown::Refused(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_maps_grow_while_those_of_flows_are_refused() {
        let flows = Part::Flows(IpFamily::V6);
        let full = [flows, Part::Backends].into();
        let mut growing = Growing::default();
        assert_eq!(growing.growable(&full), full);
        growing.attempted(true, Some("no memory".to_owned()));
        assert_eq!(growing.growable(&full), [Part::Backends].into());
        assert!(!is_recent(growing.refused), "at once");
        growing.attempted(false, Some("no memory".to_owned()));
        assert!(is_recent(growing.refused));
        growing.attempted(true, None);
        assert_eq!(growing.growable(&full), full);
    }
}
