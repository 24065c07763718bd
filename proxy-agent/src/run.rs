//! `proxy-agent run`: wires sources, model and data path, and keeps them synced until a signal.
//!
//! [`Agent::follow`] lists all events. They are handled by [`services`], [`interfaces`] or [`sockets`], and by [`agent`] if they concern
//! more than one of them.

mod agent;
mod configuration;
mod conntrack;
mod ends;
mod interfaces;
mod map_growth;
mod pod_programs;
mod reports;
mod servers;
mod services;
mod sockets;
mod turn;

use std::{future::pending, time::Duration};

use anyhow::{Context as _, Result, bail};
use proxy_sys::process::share_heap;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, yield_now},
    time::{Instant, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::{
    agent::Agent,
    configuration::{FailureReport, configuration_changed},
    ends::{End, stop_on_signal},
    interfaces::Changes,
    servers::Servers,
    turn::{Observed, Turn},
};
use crate::{
    config::{self, Loaded},
    handover::{Holder, Notice},
    memory::Unused,
    model::objects::Change,
    net,
    service_source::Source,
    source::SourceState,
};

/// Changes that wait to be taken in; a source that is faster waits, as while maps grow. Each takes more than a kilobyte between objects
/// that stay in memory, and glibc cannot return the room of thousands.
const QUEUE: usize = 256;

/// Failed work is retried this often, if no event retries it sooner.
const RETRY: Duration = Duration::from_secs(5);

/// Runs the agent until a signal ends it, or its configuration file changes. Its programs stay attached.
///
/// # Errors
/// When it cannot begin: no permission, a kernel that is too old, an address that is taken. And when the configuration
/// file changed: the kubelet or service manager must start the agent again.
pub async fn run(loaded: Loaded) -> Result<()> {
    share_heap();
    let settings = &loaded.settings;
    info!("proxy-agent {} on node {}", env!("CARGO_PKG_VERSION"), settings.node_name);
    loaded.notices.iter().for_each(config::Notice::log);
    if let Err(error) = config::machine::set_oom_score_adj(settings.oom_score_adj) {
        warn!("{error:#}; the kernel may end the agent when memory runs out");
    }
    let cancel = CancellationToken::new();
    let stop = stop_on_signal(cancel.clone())?;

    let (changes, mut inbox) = mpsc::channel(QUEUE);
    let (state, source_state) = watch::channel(SourceState::default());
    let service_source = Source::of(settings).await?;
    let events = service_source.events(cancel.clone());
    let observed = Observed::new(settings, &source_state, service_source.requests());
    let mut servers = Servers::new(settings, &observed, &events, &cancel);
    // Lists and watches end before this agent does if another one takes over.
    let reading = cancel.child_token();
    let mut source = service_source.start(changes, state, reading.clone());
    let turn = tokio::select! {
        turn = Turn::wait(settings, &observed, &mut servers, &mut inbox, &mut source) => turn?,
        () = cancel.cancelled() => return Ok(()),
    };
    let Turn { mut holder, request, known } = turn;
    let failure_report = FailureReport::by(&observed);
    let mut agent = Agent::start(settings, net::interfaces::connect()?, observed, events, known).await?;
    agent.catch_up().await?;
    servers.start().await?;
    drop(request);
    let end = tokio::select! {
        end = agent.follow(inbox, source_state, source, &cancel, &mut holder) => end,
        error = configuration_changed(&loaded, failure_report) => Err(error),
    };
    let result = match end {
        Ok(End::HandOver) => agent.hand_over(holder, &reading, &mut servers, &cancel).await,
        end => end.map(drop),
    };
    cancel.cancel();
    stop.abort();
    info!("stopped; services keep working (`proxy-agent cleanup` ends them)");
    result
}

impl Agent {
    /// Handles events until stopped.
    async fn follow(
        &mut self,
        mut inbox: mpsc::Receiver<Change>,
        mut source_state: watch::Receiver<SourceState>,
        mut source: JoinHandle<Result<()>>,
        cancel: &CancellationToken,
        holder: &mut Holder,
    ) -> Result<End> {
        let mut network = Changes::listen()?;
        // The served services decide which interfaces need programs.
        self.interfaces.schedule.set(self.services.is_synced().then(Instant::now));
        let mut batch = Vec::new();
        let mut retry = interval(RETRY);
        let mut unused = Unused::of_start();
        loop {
            self.reports.health.turns();
            tokio::select! {
                () = cancel.cancelled() => return Ok(End::Stopped),
                notice = holder.notice() => match notice {
                    Notice::Asked => return Ok(End::HandOver),
                    Notice::Gone => bail!("the pinned maps and links were removed: the agent must be started again"),
                },
                ended = &mut source => {
                    ended.context("the source of services ended unexpectedly")??;
                    return Ok(End::Stopped);
                }
                count = inbox.recv_many(&mut batch, QUEUE) => {
                    if count == 0 {
                        // All senders are gone: the result of the source has the reason.
                        (&mut source).await.context("the source of services ended unexpectedly")??;
                        return Ok(End::Stopped);
                    }
                    if self.services.take(batch.drain(..)) {
                        self.interfaces.schedule.soon();
                    }
                    self.services.want_to_apply();
                }
                happened = network.next() => self.interfaces.note(&happened?),
                () = until(self.interfaces.schedule.next()) => {
                    self.reconcile_interfaces().await;
                    self.services.want_to_apply();
                }
                () = until(self.services.sync.settles_at().map(Into::into)), if !self.services.sync_limiter.is_wanted() => {
                    self.services.want_to_apply();
                }
                () = self.services.sync_limiter.due() => {
                    unused.note_applied(self.apply().await?);
                    self.services.sync_limiter.done();
                }
                pods = self.interfaces.pods.found() => self.follow_pods(pods),
                loaded = self.pod_programs.end() => self.take_pod_programs(loaded),
                () = yield_now(), if self.datapath.has_pending_hooks() && !self.pod_programs.are_loading() => {
                    self.attach_pods();
                }
                found = self.sockets.found() => self.apply_scan(found),
                freed = self.services.quarantine.over() => self.services.release(&mut self.datapath, freed),
                _ = retry.tick() => self.check_regularly().await,
                () = unused.give_back() => {}
                _ = source_state.changed() => {
                    debug!(state = ?*source_state.borrow_and_update(), "source");
                }
            }
            self.services.end_turn(&mut self.datapath);
        }
    }
}

/// Resolves at a time; never without one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}
