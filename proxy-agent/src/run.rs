//! `proxy-agent run`: wires sources, model and data path, and keeps them in step until a signal.

mod check;
mod configuration;
mod conntrack;
mod ends;
mod failures;
mod fragments;
mod growth;
mod network;
mod others;
mod outbound;
mod pace;
mod pods;
mod quarantine;
mod servers;
mod sockets;
mod stack;
mod turn;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use ipnet::IpNet;
use proxy_sys::socket::netns_cookie;
use rtnetlink::Handle;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::{
    check::Checks,
    configuration::{Told, configuration_changed},
    conntrack::Conntrack,
    ends::{End, stop_on_signal},
    growth::Growing,
    network::{Routes, describe},
    outbound::Seeder,
    pace::Pace,
    pods::Pods,
    quarantine::Quarantine,
    servers::Servers,
    sockets::Sockets,
    turn::{Known, Observed, Turn, cgroup_root},
};
use crate::{
    config::{self, Loaded, Settings, object_config, wishes},
    datapath::{Datapath, Prepared, in_step},
    handover::{Holder, Notice},
    memory,
    model::{objects::Change, plan::IpFamily},
    neighbours::Prober,
    net::{
        forwarding,
        interfaces::{self, Happened},
        reserved_ports,
        topology::{PodDatapath, Topology, Wishes},
    },
    observe::{Events, Health, Metrics, ServiceHealth, drops::Drops, events::Event},
    origin::Origin,
    reaper::{Reaper, Records},
    source::SourceState,
    sweeper::Sweeper,
    sync::{NoLocalEndpoints, Sync},
};

/// Changes that wait to be taken in; a source that is faster waits.
const QUEUE: usize = 4096;

/// Interface changes come in bursts: looked at once, when they have settled for this long.
const SETTLE: Duration = Duration::from_millis(50);

/// What failed is tried again this often, if nothing happens that would try it sooner.
const RETRY: Duration = Duration::from_secs(5);

/// Runs the agent until a signal ends it, or its configuration file changes. What it attached stays.
///
/// # Errors
/// When it cannot begin: no permission, a kernel that is too old, an address that is taken. And when the configuration
/// file changed: whatever started the agent is to start it again.
pub async fn run(loaded: Loaded) -> Result<()> {
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
    let origin = Origin::of(settings).await?;
    let events = origin.events(cancel.clone());
    let observed = Observed::new(settings, &source_state, origin.requests());
    let mut servers = Servers::new(settings, &observed, &events, &cancel);
    // What lists and watches ends before this agent does if another one takes over.
    let reading = cancel.child_token();
    let mut source = origin.start(changes, state, reading.clone());
    let turn = tokio::select! {
        turn = Turn::wait(settings, &observed, &mut servers, &mut inbox, &mut source) => turn?,
        () = cancel.cancelled() => return Ok(()),
    };
    let Turn { mut holder, request, known } = turn;
    let told = Told::by(&observed);
    let mut agent = Agent::start(settings, interfaces::connect()?, observed, events, known).await?;
    agent.catch_up().await?;
    servers.start().await?;
    drop(request);
    memory::give_back();
    let end = tokio::select! {
        end = agent.follow(inbox, source_state, source, &cancel, &mut holder) => end,
        error = configuration_changed(&loaded, told) => Err(error),
    };
    let result = match end {
        Ok(End::HandOver) => agent.hand_over(holder, &reading, &mut servers, &cancel).await,
        end => end.map(drop),
    };
    cancel.cancel();
    stop.abort();
    info!("stopped; services go on working as they are (`proxy-agent cleanup` ends them)");
    result
}

/// The running agent.
struct Agent {
    netlink: Handle,
    wishes: Wishes,
    datapath: Datapath,
    sync: Sync,
    /// Everything that the source had was written once.
    synced: bool,
    pace: Pace,
    topology: Topology,
    routes: Routes,
    /// How pods were served when the interfaces were looked at last.
    followed: PodDatapath,
    /// Warnings about the network that were logged already.
    said: Vec<String>,
    /// Interfaces, by index, where others' programs were looked for already.
    searched: BTreeSet<u32>,
    /// Whether a node without a Node object may get traffic: where there is no API server that would have one.
    eligible_unknown: bool,
    /// The maps were in step with a source when this agent found them.
    inherited: bool,
    /// `--service-cidr`.
    service_cidrs: Vec<IpNet>,
    sockets: Sockets,
    pods: Pods,
    seeder: Seeder,
    knows_namespaces: bool,
    /// Network namespaces can be told apart (kernel 5.14): so sockets' sources are known.
    knows_cookies: bool,
    /// Whether the stack could not be made to cut packets when that was tried last.
    fragments_failed: bool,
    health: Arc<Health>,
    service_health: ServiceHealth,
    metrics: Arc<Metrics>,
    events: Events,
    drops: Drops,
    checks: Checks,
    conntrack: Conntrack,
    growing: Growing,
    _sweeper: Sweeper,
    _prober: Prober,
}

impl Agent {
    async fn start(
        settings: &Settings,
        netlink: Handle,
        observed: Observed,
        events: Events,
        known: Known,
    ) -> Result<Self> {
        let Known { sync, prepared, fills_first } = known;
        match reserved_ports::reserve(settings.nodeport_range, settings.snat_ports) {
            Ok(warning) => warning.iter().for_each(|warning| warn!("{warning}")),
            Err(error) => warn!("{error:#}; local sockets may be given ports that the data path uses"),
        }
        for file in forwarding::switched_off() {
            warn!(
                "{file} is 0: the kernel passes no packet on, so nodePorts reach no pod; CNI plugins usually set it to 1"
            );
        }
        let config = object_config(settings);
        let Observed { pins, health, metrics, counts, sweeps, listeners } = observed;
        let mut prepared = prepared.map_or_else(|| Prepared::maps_only(&config, &pins), Ok)?;
        if fills_first {
            prepared = prepared.begin_to_fill(&config, &pins)?;
        }
        let mut datapath = Datapath::open_prepared(prepared, &config, &pins, settings.xdp)?;
        if settings.kernel_log.is_some() {
            datapath.follow_kernel_log()?;
        }
        let cgroup = cgroup_root(settings)?;
        if !fills_first {
            datapath.attach_sockets(&cgroup)?;
        }
        info!(
            "pods: {}; node: socket hooks; xdp: {:?}; kernel: {:?}",
            describe(settings.pod_datapath),
            settings.xdp,
            datapath.features()
        );
        let records = datapath.socket_reader()?.map_or(Records::Notes(pins.clone()), Records::Sockets);
        let reaper = Reaper::start(records, counts.clone());
        let sweeper = Sweeper::start(&pins, settings.timeouts, sweeps)?;
        let pods = Pods::new(settings.pod_datapath == PodDatapath::Auto, datapath.packet_pods());
        let prober = Prober::start(&pins)?;
        let mut agent = Self {
            netlink,
            wishes: wishes(settings),
            datapath,
            sync,
            synced: false,
            pace: Pace::new(settings.min_sync_period),
            topology: Topology::default(),
            routes: Routes::default(),
            followed: settings.pod_datapath,
            said: Vec::new(),
            searched: BTreeSet::new(),
            eligible_unknown: settings.manifests.is_some(),
            inherited: false,
            service_cidrs: settings.service_cidrs.clone(),
            sockets: Sockets::new(reaper, settings.reset_removed_tcp),
            seeder: Seeder { pins, snat_ports: settings.snat_ports },
            pods,
            knows_namespaces: false,
            knows_cookies: netns_cookie().is_ok(),
            fragments_failed: false,
            service_health: ServiceHealth::new(health.clone(), events.clone()).with_listeners(listeners),
            health,
            metrics,
            events,
            drops: Drops::default(),
            checks: Checks::default(),
            conntrack: Conntrack::new(settings.conntrack),
            growing: Growing::default(),
            _sweeper: sweeper,
            _prober: prober,
        };
        if in_step::is_marked(&agent.seeder.pins) {
            agent.inherited = true;
            agent.health.inherit();
        }
        agent.judge_node();
        agent.set_conntrack();
        if fills_first {
            agent.fill().await?;
            agent.datapath.attach_sockets(&cgroup)?;
        }
        agent.look_at_network().await?;
        if settings.pod_datapath == PodDatapath::Auto
            && let Err(error) = agent.datapath.load_pod_programs()
        {
            warn!("{error:#}; pods that sockets cannot serve are not served");
        }
        agent.attach_first();
        agent.events.send(Event::starting());
        Ok(agent)
    }

    /// Whether load balancers should send new connections here, by the Node object. After a restart, an API server that is away says
    /// nothing against a node that served before.
    fn judge_node(&self) {
        let unknown = self.eligible_unknown || (self.inherited && !self.sync.is_complete());
        self.health.set_node_eligible(self.sync.node_is_eligible().unwrap_or(unknown));
    }

    /// Takes in changes until told to stop.
    async fn follow(
        &mut self,
        mut inbox: mpsc::Receiver<Change>,
        mut source_state: watch::Receiver<SourceState>,
        mut source: JoinHandle<Result<()>>,
        cancel: &CancellationToken,
        holder: &mut Holder,
    ) -> Result<End> {
        let mut network = network::changes()?;
        // What is served decides which interfaces need programs.
        let mut network_changed = self.synced.then(tokio::time::Instant::now);
        let mut batch = Vec::new();
        let mut quarantine = Quarantine::default();
        let mut retry = tokio::time::interval(RETRY);
        loop {
            self.health.turns();
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
                        // Nobody sends any more: the source says why.
                        (&mut source).await.context("the source of services ended unexpectedly")??;
                        return Ok(End::Stopped);
                    }
                    let knew_node = self.sync.node_addresses().to_vec();
                    for change in batch.drain(..) {
                        self.metrics.queued(&change);
                        self.sync.take(change);
                    }
                    self.judge_node();
                    if knew_node != self.sync.node_addresses() {
                        network_changed.get_or_insert_with(tokio::time::Instant::now);
                    }
                    self.want_to_apply();
                }
                change = network.next() => {
                    let happened = change.flatten();
                    if happened.is_none() {
                        warn!("lost track of the interfaces; looking again");
                        network = network::changes()?;
                    }
                    let happened = happened.unwrap_or(Happened::Other);
                    if !matches!(happened, Happened::NewRoute(_) | Happened::LostRoute(_)) {
                        self.checks.suspect();
                    }
                    if let Some(at) = self.routes.look_at(&happened) {
                        network_changed = Some(network_changed.map_or(at, |before| before.min(at)));
                    }
                }
                () = settled(network_changed) => {
                    network_changed = self.look_or_retry().await;
                    self.want_to_apply();
                }
                () = settled(self.sync.settles_at().map(Into::into)), if !self.pace.is_wanted() => {
                    self.want_to_apply();
                }
                () = self.pace.due() => {
                    if self.apply().await? {
                        network_changed.get_or_insert_with(tokio::time::Instant::now);
                    }
                    self.pace.done();
                }
                pods = self.pods.found() => self.follow_pods(pods),
                () = tokio::task::yield_now(), if self.datapath.has_pending_hooks() => self.attach_more(),
                found = self.sockets.found() => self.learn_of_sockets(found),
                freed = quarantine.over() => {
                    self.datapath.services.give_back(freed);
                    self.metrics.set_usage(&self.datapath.services.usage());
                }
                _ = retry.tick() => {
                    self.service_health.retry().await;
                    self.tell_of_drops();
                    self.set_conntrack();
                    self.datapath.remove_expired_watches();
                    self.sync.look_at_journal(Instant::now());
                    self.datapath.services.retire_filter_bits(Instant::now());
                    self.look_for_namespaces();
                    if self.check_hooks().await
                        || self.datapath.failed_hooks().next().is_some()
                        || self.lost_rule()
                        || self.lost_rule_for_fragments()
                    {
                        network_changed.get_or_insert_with(tokio::time::Instant::now);
                    }
                    if self.sync.has_failed() {
                        self.want_to_apply();
                    }
                }
                _ = source_state.changed() => {
                    debug!(state = ?*source_state.borrow_and_update(), "source");
                }
            }
            self.metrics.set_service_health_failures(self.service_health.problems().len());
            quarantine.add(self.datapath.services.take_quarantine());
        }
    }

    /// Something changed. Before the first lists are complete nothing is applied, and nothing is late: a restart would
    /// not make the source faster.
    fn want_to_apply(&mut self) {
        if self.sync.is_complete() {
            self.health.queued();
            self.pace.want();
        }
    }

    /// Brings the maps up to date. True if now other interfaces need programs than before.
    ///
    /// # Errors
    /// When the agent must be started again.
    async fn apply(&mut self) -> Result<bool> {
        let coming = self.sync.coming_udp_frontends(&self.topology.nodeport_addresses);
        self.seeder.seed(coming, BTreeSet::new()).await;
        let started = Instant::now();
        let (round, has_lost_hooks) = self.apply_services().await?;
        let lost = self.datapath.services.take_lost_frontends();
        self.sockets.end(self.datapath.services.take_dead(), lost);
        self.know_namespaces().await;
        let cidrs = self.sync.service_cidrs().into_iter().chain(self.service_cidrs.iter().copied());
        let cidrs = self.datapath.set_service_cidrs(&cidrs.collect::<Vec<_>>());
        let usage = self.datapath.services.usage();
        self.metrics.set_usage(&usage);
        if round.failed == 0 && cidrs.is_ok() {
            self.metrics.applied(started.elapsed(), !self.synced);
        } else {
            self.metrics.failed();
        }
        self.tell_of_failures(cidrs);
        for trigger in &round.triggers {
            self.metrics.programmed(trigger.family, trigger.at);
        }
        for family in [IpFamily::V4, IpFamily::V6] {
            let NoLocalEndpoints { internal, external } = self.sync.no_local_endpoints(family);
            self.metrics.set_no_local_endpoints(family, internal, external);
        }
        if round.health_checks_changed {
            self.service_health.update(self.sync.health_checks().clone()).await;
        }
        debug!(services = round.services, elapsed = ?started.elapsed(), "applied");
        if !self.synced {
            self.synced = true;
            self.sockets.look_back();
            if let Err(error) = in_step::mark(&self.seeder.pins) {
                warn!(
                    "cannot note that the maps are in step: {error}; after a restart without API server this node is not ready"
                );
            }
            match self.seeder.pins.remove_other_layouts() {
                Ok(0) => {}
                Ok(count) => info!("removed {count} maps that another release left"),
                Err(error) => warn!("maps that another release left take memory: {error:#}"),
            }
            tokio::task::spawn_blocking(memory::give_back);
            info!(
                "in step with the source: {} service ports, {} endpoints",
                usage.service_ports, usage.backends
            );
        }
        Ok(has_lost_hooks || self.pod_datapath() != self.followed)
    }
}

/// Resolves when interface changes have settled.
async fn settled(changed: Option<tokio::time::Instant>) {
    match changed {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
