//! `proxy-agent run`: wires sources, model and data path, and keeps them in step until a signal.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use futures::StreamExt as _;
use rtnetlink::Handle;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    cgroup,
    cli::{PodDatapath, Reject},
    config::{self, Loaded, LoadedFile, Settings},
    datapath::{Datapath, ObjectConfig, pins::Pins, services::Freed, wait_for_readers},
    model::objects::Change,
    net::{
        forwarding, interfaces, reserved_ports,
        topology::{Topology, Wishes},
    },
    observe::{Health, Metrics, endpoints, http},
    pace::Pace,
    source::{self, SourceState, kube::KubeSettings},
    sync::Sync,
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
pub async fn run(loaded: &Loaded) -> Result<()> {
    let settings = &loaded.settings;
    info!("proxy-agent {} on node {}", env!("CARGO_PKG_VERSION"), settings.node_name);
    loaded.notices.iter().for_each(config::Notice::log);
    if let Err(error) = config::machine::set_oom_score_adj(settings.oom_score_adj) {
        warn!("{error:#}; the kernel may end the agent when memory runs out");
    }
    let cancel = CancellationToken::new();
    let stop = stop_on_signal(cancel.clone())?;

    let (changes, inbox) = mpsc::channel(QUEUE);
    let (state, source_state) = watch::channel(SourceState::default());
    let mut agent = Agent::start(settings, interfaces::connect()?, &source_state).await?;
    agent.serve(settings, &cancel).await?;
    let source = start_source(settings, changes, state, cancel.clone());
    let result = tokio::select! {
        result = agent.follow(inbox, source_state, source, &cancel) => result,
        error = configuration_changed(loaded.file.as_ref()) => Err(error),
    };
    cancel.cancel();
    stop.abort();
    info!("stopped; services go on working as they are (`proxy-agent cleanup` ends them)");
    result
}

/// Resolves when the configuration file changed, to the reason to end.
async fn configuration_changed(file: Option<&LoadedFile>) -> anyhow::Error {
    let Some(file) = file else {
        return std::future::pending().await;
    };
    config::watch::changed(file).await;
    let path = file.path.display();
    info!("the configuration {path} changed: ending, to be started again with it");
    anyhow!("the configuration {path} changed: the agent must be started again")
}

/// The running agent.
struct Agent {
    netlink: Handle,
    wishes: Wishes,
    datapath: Datapath,
    sync: Sync,
    pace: Pace,
    topology: Topology,
    /// Complaints that were logged already.
    said: Vec<String>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Agent {
    async fn start(
        settings: &Settings,
        netlink: Handle,
        source: &watch::Receiver<SourceState>,
    ) -> Result<Self> {
        if let Err(error) = reserved_ports::reserve(&[settings.snat_ports, settings.nodeport_range]) {
            warn!("{error:#}; local sockets may be given ports that the data path uses");
        }
        for file in forwarding::switched_off() {
            warn!(
                "{file} is 0: the kernel passes no packet on, so nodePorts reach no pod; CNI plugins usually set it to 1"
            );
        }
        let config = ObjectConfig {
            snat_ports: settings.snat_ports,
            nodeports: settings.nodeport_range,
            external_cluster_ips: settings.external_cluster_ips,
            sockets_of_node_only: settings.pod_datapath == PodDatapath::Tc,
            max_flows: settings.max_flows,
            kernel_log: settings.kernel_log,
            reset_removed_tcp: settings.reset_removed_tcp,
            reject_with_reset: settings.reject == Reject::TcpReset,
            localhost_nodeports: settings.localhost_nodeports,
        };
        let pins = Pins::new(&settings.bpffs);
        let mut datapath = Datapath::open(&config, &pins, settings.xdp)?;
        if settings.kernel_log.is_some() {
            datapath.follow_kernel_log()?;
        }
        let cgroup = match &settings.cgroup_root {
            Some(cgroup) => cgroup.clone(),
            None => cgroup::find_root()?,
        };
        datapath.attach_sockets(&cgroup)?;
        info!(
            "pods: {}; node: socket hooks; xdp: {:?}; kernel: {:?}",
            match settings.pod_datapath {
                PodDatapath::Socket => "socket hooks",
                PodDatapath::Tc => "tc programs",
                PodDatapath::Both => "socket hooks and tc programs",
            },
            settings.xdp,
            datapath.features()
        );
        let mut agent = Self {
            netlink,
            wishes: Wishes {
                uplinks: settings.uplinks.clone(),
                pod_interfaces: settings.pod_interfaces.clone(),
                pod_datapath: settings.pod_datapath,
                nodeport_addresses: settings.nodeport_addresses.clone(),
                bind_address: settings.bind_address,
            },
            datapath,
            sync: Sync::new(&settings.node_name),
            pace: Pace::new(settings.min_sync_period),
            topology: Topology::default(),
            said: Vec::new(),
            health: Arc::new(Health::new(source.clone())),
            metrics: Arc::new(Metrics::new(pins, source.clone())),
        };
        agent.look_at_network().await?;
        Ok(agent)
    }

    /// Answers health checks and scrapes until cancelled.
    async fn serve(&self, settings: &Settings, cancel: &CancellationToken) -> Result<()> {
        let health = endpoints::health(self.health.clone());
        let metrics = endpoints::metrics(self.metrics.clone(), self.health.clone());
        for (what, address, routes) in [
            ("health checks", settings.healthz_bind_address, health),
            ("metrics", settings.metrics_bind_address, metrics),
        ] {
            let cancel = cancel.clone();
            if settings.bind_address_hard_fail {
                let listener = TcpListener::bind(address).await;
                let listener = listener.with_context(|| format!("cannot answer {what} at {address}"))?;
                info!("answering {what} at {address}");
                tokio::spawn(http::serve_on(listener, routes, cancel));
            } else {
                tokio::spawn(async move { http::serve(what, address, routes, cancel).await });
            }
        }
        Ok(())
    }

    /// Takes in changes until told to stop.
    async fn follow(
        &mut self,
        mut inbox: mpsc::Receiver<Change>,
        mut source_state: watch::Receiver<SourceState>,
        mut source: JoinHandle<Result<()>>,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mut network = interfaces::changes()?;
        let mut network_changed: Option<tokio::time::Instant> = None;
        let mut batch = Vec::new();
        let mut quarantine: Option<JoinHandle<Vec<Freed>>> = None;
        let mut synced = false;
        let mut retry = tokio::time::interval(RETRY);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                ended = &mut source => {
                    return ended.context("the source of services ended unexpectedly")?;
                }
                count = inbox.recv_many(&mut batch, QUEUE) => {
                    if count == 0 {
                        // Nobody sends any more: the source says why.
                        return (&mut source).await.context("the source of services ended unexpectedly")?;
                    }
                    let knew_node = self.sync.node_addresses().to_vec();
                    batch.drain(..).for_each(|change| self.sync.take(change));
                    if knew_node != self.sync.node_addresses() {
                        network_changed.get_or_insert_with(tokio::time::Instant::now);
                    }
                    self.want_to_apply();
                }
                change = network.next() => {
                    if change.is_none() {
                        warn!("lost track of the interfaces; looking again");
                        network = interfaces::changes()?;
                    }
                    network_changed.get_or_insert_with(|| tokio::time::Instant::now() + SETTLE);
                }
                () = settled(network_changed) => {
                    network_changed = None;
                    if let Err(error) = self.look_at_network().await {
                        error!("{error:#}");
                    }
                    self.want_to_apply();
                }
                () = self.pace.due() => {
                    self.apply(&mut synced);
                    self.pace.done();
                }
                freed = finished(&mut quarantine) => {
                    quarantine = None;
                    self.datapath.services.give_back(freed);
                }
                _ = retry.tick() => {
                    self.datapath.services.retire_filter_bits(Instant::now());
                    if self.datapath.failed_hooks().next().is_some() {
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
            if quarantine.is_none() {
                let freed = self.datapath.services.take_quarantine();
                if !freed.is_empty() {
                    quarantine = Some(tokio::task::spawn_blocking(move || {
                        wait_for_readers();
                        freed
                    }));
                }
            }
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

    /// Brings the maps up to date.
    fn apply(&mut self, synced: &mut bool) {
        let started = Instant::now();
        let round = self.sync.apply(&mut self.datapath.services);
        let usage = self.datapath.services.usage();
        self.metrics.set_usage(&usage);
        match round.error {
            None => {
                self.health.applied();
                self.metrics.applied(started.elapsed());
            }
            Some(error) => {
                self.health.failed(&error);
                self.metrics.failed();
            }
        }
        debug!(services = round.services, elapsed = ?started.elapsed(), "applied");
        if !*synced {
            *synced = true;
            info!(
                "in step with the source: {} service ports, {} endpoints",
                usage.service_ports, usage.backends
            );
        }
    }

    /// Looks at interfaces and addresses, and attaches and writes what they ask for.
    async fn look_at_network(&mut self) -> Result<()> {
        let interfaces = interfaces::read(&self.netlink).await?;
        let topology = Topology::new(&interfaces, self.sync.node_addresses(), &self.wishes);
        for complaint in &topology.complaints {
            if !self.said.contains(complaint) {
                warn!("{complaint}");
            }
        }
        self.said.clone_from(&topology.complaints);
        if topology.nodeport_addresses != self.topology.nodeport_addresses {
            let addresses: Vec<String> =
                topology.nodeport_addresses.iter().map(ToString::to_string).collect();
            info!("nodePorts are served at {}", addresses.join(", "));
        }
        self.datapath.follow(&topology)?;
        let failed: Vec<String> =
            self.datapath.failed_hooks().map(|(name, error)| format!("{name}: {error}")).collect();
        self.metrics.set_hooks(self.datapath.hooks(), failed.len());
        self.health.set_failed_hooks(failed);
        self.sync.set_local_addresses(&topology.local_addresses);
        self.topology = topology;
        Ok(())
    }
}

/// Resolves when interface changes have settled.
async fn settled(changed: Option<tokio::time::Instant>) {
    match changed {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the readers of what is in quarantine are gone.
async fn finished(quarantine: &mut Option<JoinHandle<Vec<Freed>>>) -> Vec<Freed> {
    match quarantine {
        Some(task) => task.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

fn start_source(
    settings: &Settings,
    changes: mpsc::Sender<Change>,
    state: watch::Sender<SourceState>,
    cancel: CancellationToken,
) -> JoinHandle<Result<()>> {
    match &settings.manifests {
        Some(folder) => {
            info!("reading Services and EndpointSlices from {}", folder.display());
            tokio::spawn(source::manifests::run(
                folder.clone(),
                settings.node_name.clone(),
                changes,
                state,
                cancel,
            ))
        }
        None => {
            let settings = KubeSettings {
                kubeconfig: settings.kubeconfig.clone(),
                api_server: settings.api_server.clone(),
                node_name: settings.node_name.clone(),
                timing: source::kube::Timing::default(),
            };
            tokio::spawn(source::kube::run(settings, changes, state, cancel))
        }
    }
}

fn stop_on_signal(cancel: CancellationToken) -> Result<JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!("{name}: stopping");
        cancel.cancel();
    }))
}
