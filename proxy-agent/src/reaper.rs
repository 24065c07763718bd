//! Ends sockets whose endpoint stopped serving.
//!
//! The socket programs translate a destination once, when a socket connects. A UDP socket would then send to a dead
//! endpoint for ever: nothing tells its process. So the agent ends such sockets in whichever network namespace they are
//! in; their processes see an error and connect anew, to an endpoint that serves. Only sockets are ended that the programs
//! noted as translated to that endpoint, never one that connected to the endpoint's own address.
//!
//! # No socket is missed
//! A socket connects in these steps: (1) the program reads the set of endpoints, (2) it notes socket and endpoint, (3) it
//! ends, (4) the kernel makes the socket a connected one, which sock_diag lists. The agent (a) publishes the new set,
//! (b) waits until no program runs that may have read the old one, (c) reads the notes, (d) walks through the namespaces.
//! After (b) every program that chose the dead endpoint has noted it, and no later one chooses it: what (c) finds is
//! complete, as far as the map, which forgets the oldest when full, remembers. But between (3) and (4) the thread may
//! have been preempted, for which there is no grace period, and (d) would not find its socket. So what was noted and not
//! found is looked for once more, [`SECOND_LOOK`] later. Most of it is sockets that were closed: nothing removes their
//! notes.

pub mod end;
pub mod noted;

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use prometheus_client::metrics::counter::Counter;
use proxy_common::layout::id::Id;
use tokio::{
    sync::Notify,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, error, warn};

use self::end::{Outcome, Suspect};
pub use self::noted::Noted;
use crate::{
    datapath::{pins::Pins, wait_for_readers},
    model::objects::Protocol,
    net::sock_diag::Transport,
};

/// Longer than a thread waits for a processor: a control group that used up its quota (`cpu.max`) waits 100 ms.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// What was done, for metrics. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Sockets ended.
    pub ended: Counter,
    /// How often a network namespace could not be entered, or its sockets not be listed or ended, or the notes not be read.
    pub failed: Counter,
}

/// Ends sockets in the background until dropped.
#[derive(Debug)]
pub struct Reaper {
    pins: Pins,
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl Reaper {
    /// Starts with nothing to do. Needs a tokio runtime.
    pub fn start(pins: Pins, counts: Counts) -> Self {
        let queue = Arc::<Queue>::default();
        let worker = Worker { pins: pins.clone(), queue: queue.clone(), counts, said_unsupported: false };
        Self { pins, queue, task: tokio::spawn(worker.work()) }
    }

    /// These backends serve no more, and the data path has been told: their sockets are to be ended. Never waits; what
    /// comes while others are being worked on is taken together, and a backend that is waiting already takes no more room.
    ///
    /// Name a TCP backend only where its connections are to be reset.
    pub fn dead(&self, backends: impl IntoIterator<Item = (Protocol, Id)>) {
        let dead =
            backends.into_iter().filter_map(|(protocol, backend)| Some((transport(protocol)?, backend)));
        self.queue.add(|pending| pending.dead.extend(dead));
    }

    /// The sockets that were translated, for [`Reaper::sweep`].
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub async fn noted(&self) -> Result<Vec<Noted>> {
        let pins = self.pins.clone();
        spawn_blocking(move || noted::read(&pins)).await.context("cannot read the notes of sockets")?
    }

    /// Ends those sockets among `noted` whose backend is not served by any of `protocols`: for after a restart, when backends
    /// may have gone that this agent never knew. The notes do not say which protocol a socket has: `is_served` is asked
    /// for each, and must know what is served now, after the notes were read.
    pub fn sweep(
        &self,
        noted: &[Noted],
        protocols: &[Protocol],
        is_served: impl Fn(Protocol, &Noted) -> bool,
    ) {
        let suspects = noted.iter().flat_map(|noted| {
            let unserved = protocols.iter().filter(|protocol| !is_served(**protocol, noted));
            unserved.filter_map(|protocol| Some(suspect(noted, transport(*protocol)?)))
        });
        self.queue.add(|pending| pending.suspects.extend(suspects));
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What waits to be done.
#[derive(Debug, Default)]
struct Pending {
    dead: HashSet<(Transport, Id)>,
    suspects: HashSet<Suspect>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.dead.is_empty() && self.suspects.is_empty()
    }
}

/// Sets instead of a channel: as large as there are different backends, so it needs no bound.
#[derive(Debug, Default)]
struct Queue {
    pending: Mutex<Pending>,
    news: Notify,
}

impl Queue {
    fn add(&self, add: impl FnOnce(&mut Pending)) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut pending);
        if !pending.is_empty() {
            self.news.notify_one();
        }
    }

    fn take(&self) -> Pending {
        std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Worker {
    pins: Pins,
    queue: Arc<Queue>,
    counts: Counts,
    said_unsupported: bool,
}

impl Worker {
    async fn work(mut self) {
        // What is to be looked for once more, and when; the soonest first.
        let mut second_looks: VecDeque<(Instant, HashSet<Suspect>)> = VecDeque::new();
        loop {
            let due = second_looks.front().map(|(due, _)| *due);
            tokio::select! {
                () = self.queue.news.notified() => {}
                () = reached(due) => {}
            }
            let Pending { dead, suspects: first } = self.queue.take();
            let mut second = HashSet::new();
            while let Some((due, suspects)) = second_looks.pop_front() {
                if due > Instant::now() {
                    second_looks.push_front((due, suspects));
                    break;
                }
                second.extend(suspects);
            }
            let started = Instant::now();
            let pins = self.pins.clone();
            let round = spawn_blocking(move || round(&pins, &dead, first, second)).await;
            match round.context("ending sockets was broken off").flatten() {
                Ok((outcome, missing)) => {
                    self.report(&outcome, started.elapsed());
                    if !missing.is_empty() && !outcome.unsupported {
                        second_looks.push_back((Instant::now() + SECOND_LOOK, missing));
                    }
                }
                Err(error) => {
                    self.counts.failed.inc();
                    error!("{error:#}; sockets may stay connected to endpoints that are gone");
                }
            }
            // At most half of one processor, whatever the rate at which endpoints come and go.
            sleep(started.elapsed()).await;
        }
    }

    fn report(&mut self, outcome: &Outcome, took: Duration) {
        let Outcome { ended, namespaces, failed, unsupported } = outcome;
        self.counts.ended.inc_by(ended.len() as u64);
        self.counts.failed.inc_by(*failed as u64);
        if *unsupported && !self.said_unsupported {
            self.said_unsupported = true;
            warn!(
                "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY; modules udp_diag, tcp_diag): connected UDP \
                 sockets go on sending to endpoints that are gone until their processes connect anew"
            );
        }
        if *namespaces > 0 {
            debug!(
                ended = ended.len(),
                namespaces,
                failed,
                ?took,
                "looked for sockets of endpoints that are gone"
            );
        }
    }
}

/// One walk. Returns also what was looked for the first time and not found.
fn round(
    pins: &Pins,
    dead: &HashSet<(Transport, Id)>,
    mut first: HashSet<Suspect>,
    second: HashSet<Suspect>,
) -> Result<(Outcome, HashSet<Suspect>)> {
    if !dead.is_empty() {
        wait_for_readers();
        first.extend(suspects(&noted::read(pins)?, dead));
    }
    let mut missing = first.clone();
    first.extend(second);
    let outcome = end::end(&first).context("cannot walk through the network namespaces")?;
    missing.retain(|suspect| !outcome.ended.contains(suspect));
    Ok((outcome, missing))
}

/// Which of the noted sockets may be connected to a dead backend.
fn suspects(noted: &[Noted], dead: &HashSet<(Transport, Id)>) -> impl Iterator<Item = Suspect> {
    noted.iter().flat_map(|noted| {
        [Transport::Tcp, Transport::Udp]
            .into_iter()
            .filter(|transport| dead.contains(&(*transport, noted.backend_id)))
            .map(|transport| suspect(noted, transport))
    })
}

fn suspect(noted: &Noted, transport: Transport) -> Suspect {
    Suspect { transport, cookie: noted.cookie, peer: noted.backend }
}

/// `None` for SCTP: socket programs do not see it.
fn transport(protocol: Protocol) -> Option<Transport> {
    match protocol {
        Protocol::Tcp => Some(Transport::Tcp),
        Protocol::Udp => Some(Transport::Udp),
        Protocol::Sctp => None,
    }
}

async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
