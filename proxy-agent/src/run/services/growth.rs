//! Makes room for services: maps that are nearly full, or too small, are replaced by larger ones.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
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
    memory,
    model::plan::IpFamily,
    observe::events::Event,
    sync::Round,
};

/// After a refusal larger maps are not tried again for this long: programs are loaded for each attempt.
const REST: Duration = Duration::from_secs(60);

/// What the kernel refused, so that it is not tried again at once. Maps of flows take far more memory than the others, which grow
/// meanwhile.
#[derive(Debug, Default)]
pub(super) struct Growing {
    flows: Option<Refusal>,
    others: Option<Refusal>,
}

#[derive(Debug)]
struct Refusal {
    at: Instant,
    why: String,
}

impl Refusal {
    fn is_recent(&self) -> bool {
        self.at.elapsed() < REST
    }
}

impl Growing {
    /// Those of the full parts that may grow now.
    fn growable(&self, full: &BTreeSet<Part>) -> BTreeSet<Part> {
        let rests = self.flows.as_ref().is_some_and(Refusal::is_recent);
        full.iter().copied().filter(|part| !(rests && matches!(part, Part::Flows(_)))).collect()
    }

    /// Whether no map may grow now.
    fn rests(&self) -> bool {
        self.others.as_ref().is_some_and(Refusal::is_recent)
    }

    /// Takes the result of an attempt; true if it is a refusal for another reason than the last one.
    fn attempted(&mut self, has_flows: bool, refused: Option<&str>) -> bool {
        let last = if has_flows { &mut self.flows } else { &mut self.others };
        let is_new = refused.is_some_and(|why| last.as_ref().is_none_or(|last| last.why != why));
        *last = refused.map(|why| Refusal { at: Instant::now(), why: why.to_owned() });
        is_new
    }

    fn problems(&self) -> Vec<String> {
        self.flows.iter().chain(&self.others).map(|refusal| refusal.why.clone()).collect()
    }
}

impl ServiceReconciler {
    /// Brings services into the maps, and makes room for those that do not fit. True if programs must be attached again.
    ///
    /// # Errors
    /// When the agent must be started again.
    pub(super) async fn apply_services(
        &mut self,
        datapath: &mut Datapath,
        snat_sources: &BTreeSet<IpAddr>,
    ) -> Result<(Round, bool)> {
        let mut round = self.sync.apply(&mut datapath.services);
        let mut has_lost_hooks = false;
        while let Some(room) = self.wanted_room(datapath, &round.full) {
            let Some(lost) = self.grow(datapath, &room, snat_sources).await? else { break };
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
        if self.growing.rests() {
            return None;
        }
        room.grown(&used.max(&self.sync.demand()), &full)
    }

    /// Replaces maps; true if programs must be attached again, `None` if the maps stay unchanged.
    async fn grow(
        &mut self,
        datapath: &mut Datapath,
        room: &Room,
        snat_sources: &BTreeSet<IpAddr>,
    ) -> Result<Option<bool>> {
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
        // Reading the programs and copying the entries took memory that is free now.
        tokio::task::spawn_blocking(memory::give_back);
        self.reports.metrics.maps_grew(failure.is_none());
        let is_new = self.growing.attempted(has_flows, failure.as_deref());
        if let Some(failure) = failure.filter(|_| is_new) {
            error!("{failure}; trying again after {} s", REST.as_secs());
            self.reports.events.send(Event::of_node("MapsCannotGrow", "Grow", &failure));
        }
        self.reports.health.set_problems("maps", self.growing.problems());
        if has_flows && matches!(grown, Grown::Done(_)) {
            // Programs without the family noted no connections of kernel NAT.
            self.seeder.seed(HashSet::new(), snat_sources.clone()).await;
        }
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
        assert!(growing.attempted(true, Some("no memory")));
        assert_eq!(growing.growable(&full), [Part::Backends].into());
        assert!(!growing.rests(), "others may grow at once");
        assert!(!growing.attempted(false, None));
        assert_eq!(growing.problems(), ["no memory"], "success of others ends no problem of flows");
        assert!(!growing.attempted(true, Some("no memory")), "reported before");
        assert!(growing.attempted(true, Some("no types")));
        assert!(growing.attempted(false, Some("too large")) && growing.rests());
        assert!(!growing.attempted(true, None));
        assert_eq!(growing.growable(&full), full);
        assert_eq!(growing.problems(), ["too large"]);
    }
}
