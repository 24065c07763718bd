//! Enlarges the maps of flows, sockets and clients before they are full.
//!
//! A separate thread waits for the programs' signals, compares what they inserted with the room, and counts the entries only if there may be
//! too many: so an idle node costs nothing, and a busy one a count for every eighth of a map's room that was inserted.

use std::{
    io::{PipeReader, PipeWriter, pipe},
    os::fd::AsFd as _,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tracing::{error, info};

use super::reports::Reports;
use crate::{
    datapath::{
        by_use::ByUseMap,
        growth_signals::{GrowthSignals, Insertions, Waited},
        pins::Pins,
        sizes::{UNUSED, most},
    },
    observe::events::Event,
};

/// A map grows by this factor: it may fill while it is copied, and each size is used for a while.
const FACTOR: u32 = 4;

/// Signals within this time are taken together.
const REST: Duration = Duration::from_millis(50);

/// After a refusal a larger map is not tried again for this long.
const REST_AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// Enlarges maps in the background until dropped.
pub(super) struct MapGrowth {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl MapGrowth {
    /// Starts. Completes the work of an agent that was killed.
    ///
    /// # Errors
    /// When a map cannot be opened, or there can be no thread.
    pub(super) fn start(pins: &Pins, max_flows: u32, reports: Reports) -> Result<Self> {
        let open = |definition| {
            let map = ByUseMap::open(pins, definition)?;
            Ok(Growing {
                most: definition.by_use().map_or(0, |size| most(size, max_flows)),
                map,
                usage: Usage::default(),
            })
        };
        let maps: Vec<Growing> = ByUseMap::definitions()
            .map(open)
            .collect::<Result<_>>()
            .context("cannot open a map that grows")?;
        let signals = GrowthSignals::open(pins).context("cannot open the map `growth_signals`")?;
        let insertions = Insertions::open(pins).context("cannot open the map `insertions`")?;
        let (stopped, stop) = pipe()?;
        let mut work = Work { maps, signals, insertions, refused: None, reports };
        let thread = thread::Builder::new()
            .name("map-growth".to_owned())
            .spawn(move || work.run(&stopped))
            .context("cannot start the thread that enlarges maps")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for MapGrowth {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It only panics if there is a defect, and that was printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A map, and what is known of its use.
struct Growing {
    map: ByUseMap,
    most: u32,
    usage: Usage,
}

/// How much of a map is used, as far as it was counted.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    capacity: u32,
    /// Entries at the last count, and how many insertions there had been.
    counted: Option<(u32, u64)>,
}

impl Usage {
    /// Whether more than half may be used after so many insertions. Entries are counted again only after another eighth.
    fn may_be_short(&self, inserted: u64) -> bool {
        let Some((entries, before)) = self.counted else { return true };
        let since = inserted.saturating_sub(before);
        since >= u64::from(self.capacity / 8) && is_short(self.capacity, u64::from(entries) + since)
    }
}

fn is_short(capacity: u32, entries: u64) -> bool {
    2 * entries > u64::from(capacity)
}

struct Work {
    maps: Vec<Growing>,
    signals: GrowthSignals,
    insertions: Insertions,
    refused: Option<Refusal>,
    reports: Reports,
}

struct Refusal {
    at: Instant,
    why: String,
}

impl Work {
    /// Runs until the other end of the pipe is closed, or no map can grow any more.
    fn run(&mut self, stopped: &PipeReader) {
        loop {
            self.signals.clear();
            let result = self.enlarge_all();
            self.report(result);
            if self.maps.is_empty() {
                return;
            }
            match self.wait(stopped) {
                Ok(Waited::Stopped) => return,
                Ok(_) => {}
                Err(error) => {
                    error!("maps of flows keep their sizes: cannot wait for signals: {error}");
                    return;
                }
            }
        }
    }

    fn wait(&self, stopped: &PipeReader) -> std::io::Result<Waited> {
        if let Some(refused) = &self.refused {
            let rest = REST_AFTER_REFUSAL.saturating_sub(refused.at.elapsed());
            return GrowthSignals::pause(stopped.as_fd(), rest);
        }
        match self.signals.wait(stopped.as_fd(), None)? {
            Waited::Stopped => Ok(Waited::Stopped),
            _ => GrowthSignals::pause(stopped.as_fd(), REST),
        }
    }

    /// Enlarges the maps of which more than half is used. All are tried; the first failure is returned.
    fn enlarge_all(&mut self) -> Result<()> {
        let mut result = Ok(());
        let Self { maps, insertions, reports, .. } = self;
        maps.retain_mut(|map| {
            let enlarged = map.enlarge(insertions, reports);
            let is_largest = map.usage.capacity >= map.most;
            if let Err(error) = enlarged
                && result.is_ok()
            {
                result = Err(error.context(format!("the map `{}` cannot grow", map.map.name())));
                return true;
            }
            !is_largest
        });
        result
    }

    fn report(&mut self, result: Result<()>) {
        let why = result.err().map(|error| format!("{error:#}"));
        if let Some(why) = &why {
            self.reports.metrics.maps_grew(false);
            if self.refused.as_ref().is_none_or(|refused| refused.why != *why) {
                error!("{why}; trying again after {} s", REST_AFTER_REFUSAL.as_secs());
                self.reports.events.send(Event::of_node("MapsCannotGrow", "Grow", why));
            }
        }
        self.reports.health.set_problems("maps by use", why.iter().cloned().collect());
        self.refused = why.map(|why| Refusal { at: Instant::now(), why });
    }
}

impl Growing {
    fn enlarge(&mut self, insertions: &Insertions, reports: &Reports) -> Result<()> {
        // Left by an agent that was killed, or by a failure.
        self.map.settle()?;
        if self.usage.capacity <= UNUSED {
            self.usage.capacity = self.map.capacity()?;
        }
        let capacity = self.usage.capacity.saturating_mul(FACTOR).min(self.most);
        // A family without Services has maps that nothing is inserted into.
        if self.usage.capacity <= UNUSED || capacity <= self.usage.capacity {
            return Ok(());
        }
        let inserted = insertions.into(&self.map)?;
        if inserted == 0 || !self.usage.may_be_short(inserted) {
            return Ok(());
        }
        let entries = self.map.count()?;
        self.usage.counted = Some((entries, inserted));
        if !is_short(self.usage.capacity, entries.into()) {
            return Ok(());
        }
        let started = Instant::now();
        self.map.enlarge(capacity)?;
        self.usage.capacity = capacity;
        let copied = self.map.settle()?;
        reports.metrics.maps_grew(true);
        info!(
            "the map `{}` grew to {capacity} entries: {entries} were in use, {copied} were copied, in {:.0?}",
            self.map.name(),
            started.elapsed()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_counted_when_more_than_half_may_be_used() {
        for (counted, inserted, expected) in [
            (None, 1, true),
            (Some((0, 0)), 512, false),
            (Some((0, 0)), 513, true),
            (Some((500, 1000)), 1100, false),
            (Some((500, 1000)), 1128, true),
            (Some((1000, 0)), 127, false),
            // The counts began anew with new maps.
            (Some((500, 1000)), 0, false),
        ] {
            let usage = Usage { capacity: 1024, counted };
            assert_eq!(usage.may_be_short(inserted), expected, "{counted:?} {inserted}");
        }
    }

    #[test]
    fn half_is_enough() {
        assert!(!is_short(1024, 512) && is_short(1024, 513) && is_short(1, 1));
    }
}
