//! Ends sockets whose endpoint stopped serving, and UDP sockets whose frontend left the Service.
//!
//! The socket programs translate a destination once, when a socket connects. A UDP socket would then send to a dead
//! endpoint for ever: its process gets no error. So the agent ends such sockets in whichever network namespace they are in;
//! their processes get an error and connect again, to an endpoint that serves. Only sockets are ended that the programs
//! translated to that endpoint, never one that connected to the endpoint's own address. The same applies to a UDP socket
//! that connected through a frontend that is gone, or leads to another Service now, though the endpoint serves on.
//!
//! # No socket is missed
//! For endpoints; the same holds for frontends.
//!
//! A socket connects in these steps: (1) the program reads the set of endpoints, (2) it records the endpoint of the
//! socket, (3) it ends, (4) the kernel makes the socket a connected one, which sock_diag lists. The agent (a) publishes the
//! new set, (b) waits until no program runs that may have read the old one, (c) walks through the namespaces and ends each
//! connected socket that has stored the dead endpoint and has that endpoint's address as its peer. After (b) every
//! program that chose the dead endpoint has stored it, and no later one chooses it; so (c) finds all that have got to
//! (4). But between (3) and (4) the thread may have been preempted, for which there is no grace period. So there is a
//! second walk, [`SECOND_LOOK`] later, and a few more while a namespace cannot be walked through.
//!
//! A socket that is between (2) and (4) while it is still connected to an earlier endpoint matches no endpoint:
//! what it has stored is not its peer. After (4) it is.
//!
//! A program reads the record of a socket ([`SocketReader`](crate::datapath::SocketReader)), in its cell or in its storage:
//! sock_diag does not report the storage of UDP sockets.
//!
//! On kernels without socket storage, step (2) is a note in a map, and (c) begins with reading the notes: which sockets,
//! by their cookies, got that endpoint. That map forgets the oldest when it is full.

pub mod end;
pub mod noted;
pub mod records;
pub mod walk;

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

pub use self::records::Records;
use self::{
    end::{Outcome, Target},
    walk::Walked,
};
use crate::{
    datapath::{Kept, LostFrontend, wait_for_readers},
    model::objects::Protocol,
    net::sock_diag::Transport,
};

/// Longer than a thread waits for a processor: a control group that used up its quota (`cpu.max`) waits 100 ms.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Walks for the same targets, at most: two, and more while the kernel refuses to list or end sockets in some namespace.
const MOST_LOOKS: usize = 5;

/// Counts for metrics. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Sockets ended.
    pub ended: Counter,
    /// How often a network namespace could not be entered, or its sockets not be listed or ended, or the notes not be read.
    pub failed: Counter,
}

/// Ends sockets in the background until dropped.
#[derive(Debug)]
pub struct SocketTerminator {
    records: Arc<Records>,
    counts: Counts,
    queue: Arc<Queue>,
    task: JoinHandle<()>,
}

impl SocketTerminator {
    /// Starts with nothing to do. Needs a tokio runtime.
    pub fn start(records: Records, counts: Counts) -> Self {
        let (records, queue) = (Arc::new(records), Arc::<Queue>::default());
        let worker = Worker {
            records: records.clone(),
            queue: queue.clone(),
            counts: counts.clone(),
            said_unsupported: false,
        };
        Self { records, counts, queue, task: tokio::spawn(worker.work()) }
    }

    /// These backends serve no more, and the data path knows it: their sockets are to be ended. Never waits; backends that
    /// come while others are being worked on are taken together, and a backend that is waiting already takes no more room.
    ///
    /// Name a TCP backend only if its connections are to be reset.
    pub fn dead(&self, backends: impl IntoIterator<Item = (Protocol, Id)>) {
        let dead = backends
            .into_iter()
            .filter_map(|(protocol, backend)| Some(Target::Backend(transport(protocol)?, backend)));
        self.queue.add(dead);
    }

    /// The same for UDP frontends that service ports lost.
    pub fn lost(&self, frontends: impl IntoIterator<Item = LostFrontend>) {
        self.queue.add(frontends.into_iter().map(Target::Frontend));
    }

    /// All that connected sockets of these protocols keep: for after a restart, when backends and frontends may have gone
    /// without this agent. Name those to [`SocketTerminator::dead`] that are not served then, and to [`SocketTerminator::lost`] those that lead
    /// elsewhere.
    ///
    /// To be called when the data path knows what is served; takes as long as [`SECOND_LOOK`], because two walks are
    /// needed here, too, for the same reason.
    ///
    /// # Errors
    /// When sockets or notes cannot be read.
    pub async fn kept(&self, protocols: &[Protocol]) -> Result<HashSet<Kept>> {
        let look = || {
            let records = self.records.clone();
            let transports = protocols.iter().copied().filter_map(transport).collect();
            spawn_blocking(move || {
                wait_for_readers();
                records.kept(&transports)
            })
        };
        let (mut found, failed) = look().await.context("looking at sockets was broken off")??;
        sleep(SECOND_LOOK).await;
        let (second, failed_again) = look().await.context("looking at sockets was broken off")??;
        found.extend(second);
        self.counts.failed.inc_by(failed.max(failed_again) as u64);
        Ok(found)
    }
}

impl Drop for SocketTerminator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Backends and frontends whose sockets are to be ended. A set instead of a channel: as large as there are different ones, so
/// it needs no bound.
#[derive(Debug, Default)]
struct Queue {
    gone: Mutex<HashSet<Target>>,
    news: Notify,
}

impl Queue {
    fn add(&self, more: impl Iterator<Item = Target>) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.extend(more);
        if !gone.is_empty() {
            self.news.notify_one();
        }
    }

    fn take(&self) -> HashSet<Target> {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Worker {
    records: Arc<Records>,
    queue: Arc<Queue>,
    counts: Counts,
    said_unsupported: bool,
}

impl Worker {
    async fn work(mut self) {
        // The soonest first.
        let mut further_looks: VecDeque<Look> = VecDeque::new();
        loop {
            let due = further_looks.front().map(|look| look.due);
            tokio::select! {
                () = self.queue.news.notified() => {}
                () = reached(due) => {}
            }
            let gone = self.queue.take();
            let mut due = Vec::new();
            while further_looks.front().is_some_and(|look| look.due <= Instant::now()) {
                due.extend(further_looks.pop_front());
            }
            let started = Instant::now();
            let records = self.records.clone();
            let round = spawn_blocking(move || round(&records, gone, due)).await;
            match round.context("ending sockets was broken off").flatten() {
                Ok((outcome, again)) => {
                    self.report(&outcome, started.elapsed());
                    if !outcome.walked.unsupported {
                        further_looks.extend(again);
                    }
                }
                Err(error) => {
                    self.counts.failed.inc();
                    error!("{error:#}; sockets may stay connected to endpoints or frontends that are gone");
                }
            }
            // At most half of one processor, for any rate of changes of endpoints.
            sleep(started.elapsed()).await;
        }
    }

    fn report(&mut self, outcome: &Outcome, took: Duration) {
        let Outcome { ended, walked: Walked { namespaces, failed, unsupported } } = outcome;
        self.counts.ended.inc_by(ended.len() as u64);
        self.counts.failed.inc_by(*failed as u64);
        if *unsupported && !self.said_unsupported {
            self.said_unsupported = true;
            warn!(
                "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY; modules udp_diag, tcp_diag): connected \
                 UDP sockets keep sending to endpoints that are gone until their processes connect again"
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

/// Targets to search once more.
#[derive(Debug)]
struct Look {
    due: Instant,
    /// Walks that were made for them.
    made: usize,
    targets: HashSet<Target>,
}

/// One walk, for targets that are new and for those that are due again. Also returns which are to be searched once more.
fn round(records: &Records, gone: HashSet<Target>, mut looks: Vec<Look>) -> Result<(Outcome, Vec<Look>)> {
    if !gone.is_empty() {
        wait_for_readers();
        looks.push(Look { due: Instant::now(), made: 0, targets: records.targets(gone)? });
    }
    let targets = looks.iter().flat_map(|look| &look.targets).copied().collect();
    let outcome =
        end::end(&targets, records.reader()).context("cannot walk through the network namespaces")?;
    let again = again(looks, &outcome, Instant::now() + SECOND_LOOK);
    Ok((outcome, again))
}

/// Which of these targets are to be searched once more after a walk, and when.
fn again(mut looks: Vec<Look>, outcome: &Outcome, due: Instant) -> Vec<Look> {
    let most = if outcome.walked.failed > 0 { MOST_LOOKS } else { 2 };
    looks.retain_mut(|look| {
        look.targets
            .retain(|target| !matches!(target, Target::Socket(socket) if outcome.ended.contains(socket)));
        look.made += 1;
        look.due = due;
        look.made < most && !look.targets.is_empty()
    });
    looks
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
