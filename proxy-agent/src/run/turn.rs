//! Which of several agents with one `--bpffs` this is: waits for its turn, and hands over.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Agent, QUEUE, servers::Servers};
use crate::{
    cgroup,
    config::{Settings, object_config},
    datapath::{Prepared, pins::Pins, synced, wait_for_readers},
    flow_gc,
    handover::{Holder, Lock, Request, Waiting, is_free},
    model::objects::Change,
    observe::{Health, Listeners, Metrics, Role, ServiceHealth},
    socket_termination,
    source::{SourceState, kube::RequestCounts},
    sync::Sync,
};

/// How often a standby retries what failed.
const RETRY: Duration = Duration::from_secs(1);
/// On a node that nothing serves yet, sockets are served first if the first lists come within this time.
const PATIENCE: Duration = Duration::from_secs(1);
/// The lock is free for a moment whenever it changes hands; after this its holder is gone.
const VACANT: Duration = Duration::from_secs(1);

/// The parts of this agent that are visible from outside, whether it is its turn or not.
pub(super) struct Observed {
    pub(super) pins: Pins,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) counts: socket_termination::Counts,
    pub(super) sweeps: flow_gc::Counts,
    pub(super) listeners: Listeners,
}

impl Observed {
    pub(super) fn new(
        settings: &Settings,
        source: &watch::Receiver<SourceState>,
        requests: &RequestCounts,
    ) -> Self {
        let pins = Pins::new(&settings.bpffs);
        let (counts, sweeps) = (socket_termination::Counts::default(), flow_gc::Counts::default());
        let health = Arc::new(Health::new(source.clone(), settings.min_sync_period));
        let metrics = Arc::new(Metrics::new(pins.clone(), source.clone(), &counts, &sweeps, requests));
        Self { pins, health, metrics, counts, sweeps, listeners: Listeners::default() }
    }
}

/// This agent's turn to write.
pub(super) struct Turn {
    pub(super) holder: Holder,
    /// The agent before waits for it to be dropped.
    pub(super) request: Option<Request>,
    pub(super) known: Known,
}

/// The agent's knowledge when its turn comes.
pub(super) struct Known {
    /// The source's changes meanwhile.
    pub(super) sync: Sync,
    /// Programs that are loaded already.
    pub(super) prepared: Prepared,
    /// The attached programs use other maps, or maps that were never synced: they serve until those of this agent are filled.
    pub(super) fills_first: bool,
}

impl Turn {
    /// Loads the programs, and waits until no other agent writes. Requests the hand-over once this one knows what to write. The source is
    /// read meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses the programs, or the source of services ends.
    pub(super) async fn wait(
        settings: &Settings,
        observed: &Observed,
        servers: &mut Servers,
        inbox: &mut mpsc::Receiver<Change>,
        source: &mut JoinHandle<Result<()>>,
    ) -> Result<Self> {
        let root = observed.pins.root();
        let mut lock = Lock::attempt_below(&observed.pins)?;
        let mut waiting = None;
        let mut sync = Sync::new(&settings.node_name, settings.endpoint_settle_time)
            .with_budget(settings.service_budget);
        let mut fills = lock.is_some() && fills_first(&observed.pins);
        if lock.is_none() {
            info!(
                "another agent with the same --bpffs, {}, runs: standing by until it hands over or ends",
                root.display()
            );
            observed.health.set_role(Role::Standby);
            waiting = Some(Waiting::start(&observed.pins)?);
        }
        // A refusal of the kernel must be known while other programs serve.
        cgroup_root(settings)?;
        let (config, pins) = (object_config(settings), observed.pins.clone());
        // Nothing is attached: sockets are served first.
        let is_first = lock.is_some() && pins.link_names().is_ok_and(|names| names.is_empty());
        let load = if is_first { Prepared::load_for_sockets } else { Prepared::load };
        let mut loading = spawn_blocking(move || load(&config, &pins));
        let mut prepared: Option<Prepared> = None;
        let patience = tokio::time::Instant::now() + PATIENCE;
        let mut is_patient = true;
        let mut request = None;
        let mut batch = Vec::new();
        let mut retry = interval(RETRY);
        let (lock, prepared) = loop {
            observed.health.turns();
            (lock, prepared) = match (lock, prepared) {
                (Some(lock), Some(prepared))
                    if sync.is_complete() || !(fills || is_patient && prepared.lacks_uplinks()) =>
                {
                    break (lock, prepared);
                }
                both => both,
            };
            if lock.is_none() && prepared.is_some() && request.is_none() && sync.is_complete() {
                request =
                    Request::attempt(root).with_context(|| format!("cannot ask for {}", root.display()))?;
                if request.is_some() {
                    info!("ready to serve: asking the other agent to hand over");
                }
            }
            tokio::select! {
                loaded = &mut loading, if prepared.is_none() => {
                    let loaded = loaded.context("loading the programs ended unexpectedly")??;
                    let takes_over = lock.is_none() || fills;
                    prepared = Some(if takes_over { loaded.complete()? } else { loaded });
                }
                () = sleep_until(patience), if is_patient => is_patient = false,
                // Afterwards: loading makes pins that the next lines look for.
                taken = taken(&mut waiting), if lock.is_none() && prepared.is_some() => {
                    lock = Some(taken?);
                    info!("the other agent handed over or ended: taking over");
                    // It may have been of another release, or another one since this agent began.
                    fills = fills_first(&observed.pins);
                    observed.listeners.join();
                    observed.health.set_role(Role::Active);
                }
                ended = &mut *source => {
                    ended.context("the source of services ended unexpectedly")??;
                    return Err(anyhow!("the source of services ended"));
                }
                // When all senders are gone, the result of the source has the reason.
                count = inbox.recv_many(&mut batch, QUEUE), if !inbox.is_closed() || !inbox.is_empty() => {
                    debug!("took in {count} changes");
                    for change in batch.drain(..) {
                        observed.metrics.queued(&change);
                        sync.take(change);
                    }
                }
                _ = retry.tick(), if lock.is_none() || fills => servers.try_to_start(),
            }
        };
        observed.metrics.set_active(true);
        let known = Known { sync, prepared, fills_first: fills };
        Ok(Self { holder: Holder::new(&observed.pins, lock), request, known })
    }
}

/// Whether the maps must be filled before programs use them; logs it.
fn fills_first(pins: &Pins) -> bool {
    let fills = synced::is_to_be_filled(pins);
    if fills {
        info!(
            "the maps are others than those in use, or were never synced: filling them before programs use them"
        );
    }
    fills
}

/// The cgroup that the socket hooks serve.
pub(super) fn cgroup_root(settings: &Settings) -> Result<PathBuf> {
    settings.cgroup_root.clone().map_or_else(cgroup::find_root, Ok)
}

async fn taken(waiting: &mut Option<Waiting>) -> Result<Lock> {
    match waiting {
        Some(waiting) => waiting.lock().await,
        None => std::future::pending().await,
    }
}

impl Agent {
    /// Ends everything else, threads included: fields that are not returned are dropped here.
    fn end_but_for_health(self) -> (Arc<Health>, ServiceHealth) {
        let Self { services, reports, .. } = self;
        (reports.health, services.into_service_health())
    }

    /// Ends all writing for good, and answers health checks until another agent does. Returns when this one is cancelled.
    ///
    /// # Errors
    /// When the agent that took over is gone: this one must be started again.
    pub(super) async fn hand_over(
        self,
        holder: Holder,
        reading: &CancellationToken,
        servers: &mut Servers,
        cancel: &CancellationToken,
    ) -> Result<()> {
        info!("another agent with the same --bpffs asks for it: handing over");
        self.reports.metrics.set_active(false);
        self.reports.health.set_role(Role::Overtaken);
        reading.cancel();
        if let Err(error) = servers.listeners().share() {
            warn!("health checks will have a gap: the listeners cannot be shared: {error}");
        }
        let (health, service_health) = self.end_but_for_health();
        let mut service_health = Some(service_health);
        // The successor uses slots and ids again that no program may still be reading.
        spawn_blocking(wait_for_readers).await.context("waiting for programs ended unexpectedly")?;
        let (root, mut watch) = holder.release();
        let mut vacant_since: Option<Instant> = None;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = watch.changed() => {}
            }
            if is_free(&root) {
                if vacant_since.get_or_insert_with(Instant::now).elapsed() >= VACANT {
                    return Err(anyhow!("the agent that took over is gone: this one must be started again"));
                }
                continue;
            }
            vacant_since = None;
            if service_health.is_some() && !Request::is_there(&root) {
                info!("the other agent serves now; this one waits to be ended");
                service_health = None;
                servers.step_aside(&health);
            }
        }
    }
}
