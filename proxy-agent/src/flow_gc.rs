//! Removes expired flows: those whose last packet is longer ago than the timeout of their state.
//!
//! The maps evict the least recently used entries themselves, but only when they are full, and then a flood evicts
//! entries in its favour. Nothing else depends on this: while no agent runs, flows stay until the map is full.
//!
//! On the way it renews their backends' fingerprints in the reply filter.
//!
//! A separate thread walks through the maps again and again, a slice at a time with pauses between, so that it never runs for
//! long. Its reads do not count as uses in the maps' LRU order.

mod walk;

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use proxy_common::{V4, V6, layout::config::Timeouts};
use tracing::{debug, error, warn};

use self::walk::{Census, Step, Walk};
use crate::{
    clock::Clock,
    datapath::{
        flows::{FlowMap, FlowTable, STATES},
        maps::MapFamily,
        pins::Pins,
        reply_filter::ReplyFilter,
    },
    model::plan::IpFamily,
};

/// How long a round over all flows takes: so much longer than its timeout a flow may stay. Over more than half a million
/// entries it takes longer, by [`REST`].
const EPOCH: Duration = Duration::from_secs(30);

/// Entries of each map looked at in one go: 0.3 ms each.
const SLICE: usize = 1024;

/// Pause after each slice, at least: with that, two maps of any size cost less than a hundredth of a processor.
const REST: Duration = Duration::from_millis(64);

/// Counts for metrics. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Flows that were removed.
    pub expired: Counter,
    /// Flows there were in the last round, by family and state.
    pub flows: Family<[(&'static str, &'static str); 2], Gauge>,
}

impl Counts {
    fn set(&self, family: IpFamily, census: &Census) {
        let family = match family {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        };
        for state in STATES {
            let count = census.get(state).copied().unwrap_or(0);
            self.flows.get_or_create(&[("ip_family", family), ("state", state)]).set(count);
        }
    }
}

/// Sweeps in the background until dropped.
#[derive(Debug)]
pub struct FlowGc {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FlowGc {
    /// Starts at once.
    ///
    /// # Errors
    /// When the maps cannot be opened, or there can be no thread.
    pub fn start(pins: &Pins, timeouts: Timeouts, counts: Counts) -> Result<Self> {
        let (stop, stopped) = channel();
        let v4 = Walk::new(FlowMap::<V4>::open(pins)?, timeouts);
        let v6 = Walk::new(FlowMap::<V6>::open(pins)?, timeouts);
        let mut rounds = Rounds { v4, v6, reply_filter: ReplyFilter::open(pins)?, counts };
        let thread = thread::Builder::new()
            .name("flow-sweep".to_owned())
            .spawn(move || rounds.go_on(&stopped))
            .context("cannot start the thread that removes expired flows")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for FlowGc {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It only panics if there is a defect, and that was printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The maps of both families, one round after the other.
struct Rounds<A, B> {
    v4: A,
    v6: B,
    reply_filter: ReplyFilter,
    counts: Counts,
}

impl<F: MapFamily, T: FlowTable<F>, G: MapFamily, U: FlowTable<G>> Rounds<Walk<F, T>, Walk<G, U>> {
    /// Runs until the other end of the channel is closed.
    fn go_on(&mut self, stopped: &Receiver<()>) {
        if Clock::read().is_none() {
            warn!("the kernel does not report its clock: expired flows stay until the flow map is full");
            return;
        }
        let mut is_logged = false;
        loop {
            let started = Instant::now();
            match self.round(stopped) {
                Ok(true) => is_logged = false,
                Ok(false) => return,
                Err(error) if is_logged => debug!("{error:#}"),
                Err(error) => {
                    error!("{error:#}; expired flows stay for now");
                    is_logged = true;
                }
            }
            debug!(elapsed = ?started.elapsed(), "looked at all flows");
            if !pause(stopped, EPOCH.saturating_sub(started.elapsed())) {
                return;
            }
        }
    }

    /// Whether no entries are in a map that is being replaced.
    fn are_whole(&self) -> Result<bool> {
        Ok(self.v4.is_whole()? && self.v6.is_whole()?)
    }

    /// One round; false if it must stop. A map that is replaced by a larger one ends it: the next round begins with that one.
    fn round(&mut self, stopped: &Receiver<()>) -> Result<bool> {
        let slices = self.v4.expected(SLICE).max(self.v6.expected(SLICE));
        let rest = (EPOCH / slices).max(REST);
        let (mut has_v4, mut has_v6) = (true, true);
        self.v4.follow()?;
        self.v6.follow()?;
        if !self.are_whole()? {
            // Entries are being copied to a larger map.
            return Ok(true);
        }
        // After one that ended halfway, the rest is not all.
        let is_whole = self.v4.is_at_start() && self.v6.is_at_start();
        // Before the maps are looked for: a flow that is opened between the two is in the new epoch, or in a map that is walked over.
        let begun = is_whole.then(|| self.reply_filter.begin());
        loop {
            if self.v4.follow()? | self.v6.follow()? {
                return Ok(true);
            }
            // Read each time: a round is long.
            let clock = Clock::read().context("the kernel no longer reports its clock")?;
            has_v4 = has_v4 && !self.counts.take(F::FAMILY, self.v4.step(clock, SLICE, &self.reply_filter)?);
            has_v6 = has_v6 && !self.counts.take(G::FAMILY, self.v6.step(clock, SLICE, &self.reply_filter)?);
            if !has_v4 && !has_v6 {
                if let Some(begun) = begun
                    && self.are_whole()?
                {
                    self.reply_filter.end(begun);
                }
                return Ok(true);
            }
            if !pause(stopped, rest) {
                return Ok(false);
            }
        }
    }
}

impl Counts {
    /// Counts a step's result; true at the end of a map.
    fn take(&self, family: IpFamily, step: Step) -> bool {
        self.expired.inc_by(step.expired);
        if let Some(census) = &step.census {
            self.set(family, census);
        }
        step.census.is_some()
    }
}

/// Waits; false if it must stop.
fn pause(stopped: &Receiver<()>, time: Duration) -> bool {
    matches!(stopped.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

#[cfg(test)]
mod tests;
