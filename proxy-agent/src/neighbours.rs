//! Keeps the next hops fresh that programs send to.
//!
//! The kernel probes a neighbour only when its stack has sent a packet there: `bpf_fib_lookup` answers with one that is STALE for ever,
//! and by tc it takes the kernel 5 s (`delay_first_probe_time`) and three unicast probes to see that another host has the address. So the
//! agent probes each next hop in use once a second, by unicast, and by broadcast or multicast if it gets no answer in half a
//! second. The kernel takes the replies in, as any reply. Without an agent XDP hands a packet a second over to tc.

mod plan;

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tracing::{debug, warn};

use self::plan::{Plan, Probe};
use crate::{
    clock::Clock,
    datapath::{next_hops::NextHops, pins::Pins},
    net::{
        neighbour::Neighbours,
        probe::{self, ProbeError},
    },
};

/// Between two looks. Without next hops in use a look takes some microseconds.
const TICK: Duration = Duration::from_millis(500);

/// Next hops that no packet went to for so many seconds are not probed.
const IN_USE: u32 = 3;

/// Probes in the background until dropped.
#[derive(Debug)]
pub(crate) struct Prober {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Starts at once.
    ///
    /// # Errors
    /// When the maps cannot be opened, or there can be no thread.
    pub(crate) fn start(pins: &Pins) -> Result<Self> {
        let (stop, stopped) = channel();
        let next_hops = NextHops::open(pins)?;
        let thread = thread::Builder::new()
            .name("neighbours".to_owned())
            .spawn(move || run(&next_hops, &stopped))
            .context("cannot start the thread that probes neighbours")?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It only panics if there is a defect, and that was printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Runs until the other end of the channel is closed.
fn run(next_hops: &NextHops, stopped: &Receiver<()>) {
    let (mut plan, mut socket, mut has_failed) = (Plan::default(), None, false);
    loop {
        match look(next_hops, &mut plan, &mut socket) {
            Ok(()) => has_failed = false,
            Err(error) => {
                // Messages still to come on the socket answer an old query.
                socket = None;
                if !has_failed {
                    warn!("{error:#}; a next hop whose link-layer address changes is noticed late");
                }
                has_failed = true;
            }
        }
        if !matches!(stopped.recv_timeout(TICK), Err(RecvTimeoutError::Timeout)) {
            return;
        }
    }
}

/// Sends the probes that are due.
fn look(next_hops: &NextHops, plan: &mut Plan, socket: &mut Option<Neighbours>) -> Result<()> {
    let clock = Clock::read().context("the kernel does not report its clock")?;
    let used = next_hops.used(clock, IN_USE)?;
    plan.keep(&used);
    let mut broadcasts = 0;
    for neighbour in used {
        let neighbours = match socket {
            Some(neighbours) => neighbours,
            None => socket.insert(Neighbours::open().context("cannot query the kernel for neighbours")?),
        };
        let known = neighbours
            .get(neighbour.ifindex, neighbour.ip)
            .with_context(|| format!("cannot query the kernel for the neighbour {}", neighbour.ip))?;
        let known = match plan.probe(neighbour, known, Instant::now(), &mut broadcasts) {
            Probe::None => continue,
            Probe::Unicast(mac) => Some(mac),
            Probe::All => None,
        };
        match probe::send(neighbour.ifindex, neighbour.ip, known) {
            Ok(()) | Err(ProbeError::NoEthernet) => {}
            Err(ProbeError::Kernel(error)) => debug!(?neighbour, "cannot probe a neighbour: {error}"),
        }
    }
    next_hops.beat(clock);
    Ok(())
}
