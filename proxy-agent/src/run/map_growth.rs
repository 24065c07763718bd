//! Enlarges the maps of flows, sockets and clients before they are full.
//!
//! A separate thread waits for the programs' signals, compares what they inserted with the room, and counts the entries only if there may be
//! too many: so an idle node costs nothing, and a busy one a count for every quarter of a map's room that was inserted.

use std::{
    io::{PipeReader, PipeWriter, pipe},
    os::fd::AsFd as _,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use proxy_common::layout::maps::Definition;
use tracing::{debug, error, info};

use super::reports::Reports;
use crate::{
    datapath::{
        by_use::ByUseMap,
        growth_signals::{GrowthSignals, Insertions, pause},
        pins::Pins,
        sizes::{UNUSED, most},
    },
    observe::events::Event,
};

/// A map grows by this factor: it may fill while it is copied, and each size is used for a while.
const FACTOR: u32 = 4;

/// Signals within this time are taken together.
const REST: Duration = Duration::from_millis(50);

/// Entries that could not be copied are tried again so soon: until then programs look them up in two maps.
const REST_AFTER_COPY: Duration = Duration::from_millis(100);

/// After a refusal a larger map is not tried again for this long.
const REST_AFTER_REFUSAL: Duration = Duration::from_secs(60);

/// The part of the agent's work that has the problems.
const ABOUT: &str = "maps that grow by use";

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
        let open = |map: &'static Definition| {
            Growing::open(pins, map, max_flows).with_context(|| format!("cannot open the map `{}`", map.name))
        };
        let maps = ByUseMap::definitions().map(open).collect::<Result<_>>()?;
        let signals = GrowthSignals::open(pins).context("cannot open the map `growth_signals`")?;
        let insertions = Insertions::open(pins).context("cannot open the map `insertions`")?;
        let (stopped, stop) = pipe()?;
        let mut work = Work { maps, signals, insertions, failed: 0, problems: Vec::new(), reports };
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

/// All maps.
struct Work {
    maps: Vec<Growing>,
    signals: GrowthSignals,
    insertions: Insertions,
    /// How often in a row entries could not be copied.
    failed: u32,
    /// Those that were reported.
    problems: Vec<String>,
    reports: Reports,
}

impl Work {
    /// Runs until the other end of the pipe is closed, or no map can grow any more.
    fn run(&mut self, stopped: &PipeReader) {
        if let Err(error) = self.follow(stopped) {
            self.report(Some(format!("maps of flows keep their sizes: {error:#}")));
        }
    }

    fn follow(&mut self, stopped: &PipeReader) -> Result<()> {
        loop {
            let failure = self.settle(stopped);
            self.failed = if failure.is_some() { self.failed + 1 } else { 0 };
            // Once is not worth a report: another task may have held a bucket.
            self.report(failure.filter(|_| self.failed > 1));
            if self.failed == 0 {
                self.maps.retain(|map| map.capacity < map.most);
            }
            if self.maps.is_empty() {
                return Ok(());
            }
            if !self.signals.wait(stopped.as_fd(), self.rest())? || !pause(stopped.as_fd(), REST)? {
                return Ok(());
            }
            self.signals.clear();
            // All that are short, before the first is copied: a burst fills several.
            for map in &mut self.maps {
                map.follow(|map| self.insertions.of(map), &self.reports);
            }
        }
    }

    /// How long until there is something to do without a signal.
    fn rest(&self) -> Option<Duration> {
        if self.failed > 0 {
            return Some(REST_AFTER_COPY);
        }
        self.maps.iter().filter_map(|map| Some(map.refusal.as_ref()?.rest())).min()
    }

    /// Copies the entries of all maps that are being replaced. Returns why some could not be copied.
    fn settle(&self, stopped: &PipeReader) -> Option<String> {
        let is_stopped = || !pause(stopped.as_fd(), Duration::ZERO).unwrap_or(false);
        let mut failure = None;
        for Growing { map, .. } in &self.maps {
            let started = Instant::now();
            match map.settle(&is_stopped) {
                Ok(0) => {}
                Ok(copied) => {
                    info!("{copied} entries of `{}` were copied in {:.0?}", map.name(), started.elapsed());
                }
                Err(error) => {
                    debug!("the map `{}` cannot be copied: {error}", map.name());
                    failure = Some(format!("the map `{}` cannot be copied: {error}", map.name()));
                }
            }
        }
        failure
    }

    /// Reports what the kernel refused, and this.
    fn report(&mut self, failure: Option<String>) {
        let refused = self.maps.iter().filter_map(|map| Some(map.refusal.as_ref()?.why.clone()));
        let problems: Vec<String> = refused.chain(failure).collect();
        for new in problems.iter().filter(|problem| !self.problems.contains(problem)) {
            error!("{new}");
            self.reports.events.send(Event::of_node("MapsCannotGrow", "Grow", new));
        }
        if problems != self.problems {
            self.reports.health.set_problems(ABOUT, problems.clone());
            self.problems = problems;
        }
    }
}

/// A map, and what is known of its use.
struct Growing {
    map: ByUseMap,
    capacity: u32,
    most: u32,
    counted: Option<Counted>,
    refusal: Option<Refusal>,
}

/// The result of a count.
#[derive(Clone, Copy, Debug)]
struct Counted {
    entries: u32,
    /// How many insertions there had been.
    inserted: u64,
}

/// A larger map that the kernel refused.
struct Refusal {
    at: Instant,
    why: String,
}

impl Refusal {
    /// How long no other one is tried.
    fn rest(&self) -> Duration {
        REST_AFTER_REFUSAL.saturating_sub(self.at.elapsed())
    }
}

impl Growing {
    fn open(pins: &Pins, definition: &'static Definition, max_flows: u32) -> Result<Self> {
        let map = ByUseMap::open(pins, definition)?;
        let most = definition.by_use().map_or(0, |size| most(size, max_flows));
        Ok(Self { capacity: map.capacity()?, map, most, counted: None, refusal: None })
    }

    /// Puts a larger map in its place if more than half is used.
    fn follow(&mut self, insertions: impl FnOnce(&ByUseMap) -> Result<u64>, reports: &Reports) {
        if self.refusal.as_ref().is_some_and(|refusal| !refusal.rest().is_zero()) {
            return;
        }
        let result = self.enlarge(insertions);
        if !matches!(result, Ok(false)) {
            reports.metrics.maps_grew(result.is_ok());
        }
        self.refusal = result.err().map(|error| {
            // The next attempt counts again: the map may still be short without another insertion.
            self.counted = None;
            Refusal {
                at: Instant::now(),
                why: format!("the map `{}` cannot grow: {error:#}", self.map.name()),
            }
        });
    }

    fn enlarge(&mut self, insertions: impl FnOnce(&ByUseMap) -> Result<u64>) -> Result<bool> {
        if self.capacity <= UNUSED {
            // The family may have its first Service by now.
            self.capacity = self.map.capacity()?;
        }
        let inserted = insertions(&self.map)?;
        let is_used = self.capacity > UNUSED && inserted > 0 && self.capacity < self.most;
        if !is_used || !may_be_short(self.capacity, self.counted, inserted) {
            return Ok(false);
        }
        let entries = self.map.count()?;
        self.counted = Some(Counted { entries, inserted });
        if !is_short(self.capacity, entries.into()) {
            return Ok(false);
        }
        let wanted = next_capacity(self.capacity, self.most);
        self.capacity = self.map.enlarge(wanted, self.capacity.saturating_mul(2).min(wanted))?;
        info!("the map `{}` grew to {} entries, with {entries} in use", self.map.name(), self.capacity);
        Ok(true)
    }
}

/// Whether more than half of a map may be used after so many insertions. Entries are counted again only after another quarter: counting
/// half a million takes a tenth of a second.
fn may_be_short(capacity: u32, counted: Option<Counted>, inserted: u64) -> bool {
    let Some(counted) = counted else { return true };
    let since = inserted.saturating_sub(counted.inserted);
    since >= u64::from(capacity / 4) && is_short(capacity, u64::from(counted.entries) + since)
}

fn is_short(capacity: u32, entries: u64) -> bool {
    2 * entries > u64::from(capacity)
}

/// The size of the next map. A last step of less than twice would copy everything for little.
fn next_capacity(capacity: u32, most: u32) -> u32 {
    let next = capacity.saturating_mul(FACTOR);
    if next > most / 2 { most } else { next }
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
            (Some((500, 1000)), 1255, false),
            (Some((500, 1000)), 1256, true),
            (Some((1000, 0)), 255, false),
        ] {
            let counted = counted.map(|(entries, inserted)| Counted { entries, inserted });
            assert_eq!(may_be_short(1024, counted, inserted), expected, "{counted:?} {inserted}");
        }
        assert!(!is_short(1024, 512) && is_short(1024, 513) && is_short(1, 1));
    }

    #[test]
    fn a_refusal_lasts_until_a_larger_map_is_made() {
        const ENTRIES: u32 = 1024;
        let Some(map) = ByUseMap::unused(ENTRIES) else { return };
        map.fill_and_freeze(ENTRIES / 2 + 1);
        let mut map = Growing { map, capacity: ENTRIES, most: 1 << 20, counted: None, refusal: None };
        for attempt in 1..=2 {
            map.follow(|_| Ok(600), &Reports::nowhere());
            let refusal = map.refusal.as_mut().unwrap();
            assert!(
                refusal.why.starts_with("the map `flows_v4` cannot grow: "),
                "{attempt}: {}",
                refusal.why
            );
            assert!(!refusal.rest().is_zero());
            // A minute later.
            refusal.at = Instant::now().checked_sub(REST_AFTER_REFUSAL).unwrap();
        }
    }

    #[test]
    fn a_map_grows_in_few_steps() {
        for (capacity, most, expected) in [
            (32_768, 1 << 20, 131_072),
            (131_072, 1 << 20, 524_288),
            (524_288, 1 << 20, 1 << 20),
            (131_072, 545_454, 545_454),
            (32_768, 65_536, 65_536),
            (1 << 30, u32::MAX, u32::MAX),
        ] {
            assert_eq!(next_capacity(capacity, most), expected, "{capacity} of {most}");
        }
    }
}
