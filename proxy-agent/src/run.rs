//! `proxy-agent run`: wires sources, model and data path, and keeps them in step until a signal.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use rtnetlink::Handle;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    cgroup,
    cli::{PodDatapath, RunArgs},
    datapath::{Datapath, ObjectConfig, pins::Pins, services::Freed, wait_for_readers},
    model::objects::Change,
    net::{
        forwarding, interfaces, reserved_ports,
        topology::{Topology, Wishes},
    },
    observe::{
        Events, Health, Metrics, ServiceHealth, endpoints, events::Event, http::Server,
        service_health::Addresses,
    },
    source::{self, SourceState, kube::KubeSettings},
    sync::Sync,
};

/// Changes that wait to be taken in; a source that is faster waits.
const QUEUE: usize = 4096;

/// Interface changes come in bursts: looked at once, when they have settled for this long.
const SETTLE: Duration = Duration::from_millis(50);

/// What failed is tried again this often, if nothing happens that would try it sooner.
const RETRY: Duration = Duration::from_secs(5);

/// Whether an address for health checks or metrics that is taken ends the agent.
const MUST_BIND: bool = false;

/// Runs the agent until a signal ends it. What it attached stays.
///
/// # Errors
/// When it cannot begin: no permission, a kernel that is too old, settings that cannot work.
pub async fn run(args: &RunArgs) -> Result<()> {
    info!("proxy-agent {} on node {}", env!("CARGO_PKG_VERSION"), args.node_name);
    let cancel = CancellationToken::new();
    let stop = stop_on_signal(cancel.clone())?;

    let (changes, inbox) = mpsc::channel(QUEUE);
    let (state, source_state) = watch::channel(SourceState::default());
    let origin = Origin::of(args);
    let events = origin.events(&args.node_name, cancel.clone()).await?;
    let mut agent = Agent::start(args, interfaces::connect()?, &source_state, events).await?;
    agent.serve(args, &cancel).await?;
    let source = origin.start(changes, state, cancel.clone());
    let result = agent.follow(inbox, source_state, source, &cancel).await;
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
    topology: Topology,
    /// Complaints that were logged already.
    said: Vec<String>,
    /// Whether a node without a Node object may get traffic: where there is no API server that would have one.
    eligible_unknown: bool,
    health: Arc<Health>,
    service_health: ServiceHealth,
    metrics: Arc<Metrics>,
    events: Events,
}

impl Agent {
    async fn start(
        args: &RunArgs,
        netlink: Handle,
        source: &watch::Receiver<SourceState>,
        events: Events,
    ) -> Result<Self> {
        if args.snat_ports.overlaps(&args.nodeport_range) {
            bail!(
                "--snat-ports {} and --nodeport-range {} have ports in common: answers could not be told from requests",
                args.snat_ports,
                args.nodeport_range
            );
        }
        if let Err(error) = reserved_ports::reserve(&[args.snat_ports, args.nodeport_range]) {
            warn!("{error:#}; local sockets may be given ports that the data path uses");
        }
        for file in forwarding::switched_off() {
            warn!(
                "{file} is 0: the kernel passes no packet on, so nodePorts reach no pod; CNI plugins usually set it to 1"
            );
        }
        let config = ObjectConfig {
            snat_ports: args.snat_ports,
            nodeports: args.nodeport_range,
            external_cluster_ips: args.external_cluster_ips,
            sockets_of_node_only: args.pod_datapath == PodDatapath::Tc,
            max_flows: args.max_flows.unwrap_or_else(default_max_flows),
            kernel_log: args.kernel_log,
        };
        let pins = Pins::new(&args.pins.bpffs);
        let mut datapath = Datapath::open(&config, &pins, args.xdp)?;
        if args.kernel_log.is_some() {
            datapath.follow_kernel_log()?;
        }
        let cgroup = match &args.cgroup_root {
            Some(cgroup) => cgroup.clone(),
            None => cgroup::find_root()?,
        };
        datapath.attach_sockets(&cgroup)?;
        info!(
            "pods: {}; node: socket hooks; xdp: {:?}; kernel: {:?}",
            match args.pod_datapath {
                PodDatapath::Socket => "socket hooks",
                PodDatapath::Tc => "tc programs",
                PodDatapath::Both => "socket hooks and tc programs",
            },
            args.xdp,
            datapath.features()
        );
        let health = Arc::new(Health::new(source.clone()));
        let mut agent = Self {
            netlink,
            wishes: Wishes {
                uplinks: args.uplinks.clone(),
                pod_interfaces: args.pod_interfaces.clone(),
                pod_datapath: args.pod_datapath,
                nodeport_addresses: args.nodeport_addresses.clone(),
            },
            datapath,
            sync: Sync::new(&args.node_name),
            topology: Topology::default(),
            said: Vec::new(),
            eligible_unknown: args.manifests.is_some(),
            service_health: ServiceHealth::new(health.clone(), events.clone()),
            health,
            metrics: Arc::new(Metrics::new(pins, source.clone())),
            events,
        };
        agent.judge_node();
        agent.look_at_network().await?;
        agent.events.send(Event::starting());
        Ok(agent)
    }

    /// Answers health checks and scrapes until cancelled.
    async fn serve(&self, args: &RunArgs, cancel: &CancellationToken) -> Result<()> {
        let health = endpoints::health(&self.health, &self.metrics);
        let metrics = endpoints::metrics(&self.metrics, &self.health, &configz(args));
        for (what, address, handler, reason) in [
            ("health checks", args.healthz_bind_address, health, "FailedToStartProxierHealthcheck"),
            ("metrics", args.metrics_bind_address, metrics, "FailedToStartMetricServer"),
        ] {
            let events = self.events.clone();
            let on_failure = Box::new(move |why: &str| events.send(Event::server_failed(reason, why)));
            let server = Server { what, address, handler, must_bind: MUST_BIND, on_failure };
            server.start(cancel.clone()).await?;
        }
        Ok(())
    }

    /// Whether load balancers should send new connections here, by the Node object.
    fn judge_node(&self) {
        let eligible = self.sync.node().map_or(self.eligible_unknown, |node| !node.leaving);
        self.health.set_node_eligible(eligible);
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
                    for change in batch.drain(..) {
                        self.metrics.queued(&change);
                        self.sync.take(change);
                    }
                    self.judge_node();
                    if knew_node != self.sync.node_addresses() {
                        network_changed.get_or_insert_with(tokio::time::Instant::now);
                    }
                    self.apply(&mut synced).await;
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
                    self.apply(&mut synced).await;
                }
                freed = finished(&mut quarantine) => {
                    quarantine = None;
                    self.datapath.services.give_back(freed);
                }
                _ = retry.tick() => {
                    self.service_health.retry().await;
                    if self.datapath.failed_hooks().next().is_some() {
                        network_changed.get_or_insert_with(tokio::time::Instant::now);
                    }
                    if self.sync.has_failed() {
                        self.apply(&mut synced).await;
                    }
                }
                _ = source_state.changed() => {
                    debug!(state = ?*source_state.borrow_and_update(), "source");
                }
            }
            self.metrics.set_service_health_failures(self.service_health.problems().len());
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

    /// Brings the maps up to date.
    async fn apply(&mut self, synced: &mut bool) {
        // Before the first lists are complete nothing is late: a restart would not make the source faster.
        if !self.sync.is_complete() {
            return;
        }
        self.health.queued();
        let started = Instant::now();
        let round = self.sync.apply(&mut self.datapath.services);
        let usage = self.datapath.services.usage();
        self.metrics.set_usage(&usage);
        match round.error {
            None => {
                self.health.applied();
                self.metrics.applied(started.elapsed(), !*synced);
            }
            Some(error) => {
                self.health.failed(&error);
                self.metrics.failed();
            }
        }
        self.service_health.update([]).await;
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
        let restricted = !self.wishes.nodeport_addresses.is_empty();
        let at =
            if restricted { Addresses::These(topology.nodeport_addresses.clone()) } else { Addresses::Any };
        self.service_health.set_addresses(at).await;
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

/// What the agent runs with, as kube-proxy shows it.
fn configz(args: &RunArgs) -> serde_json::Value {
    serde_json::json!({"kubeproxy.config.k8s.io": {
        "mode": endpoints::PROXY_MODE,
        "hostnameOverride": args.node_name,
        "healthzBindAddress": args.healthz_bind_address,
        "metricsBindAddress": args.metrics_bind_address,
    }})
}

/// Where Services come from.
enum Origin {
    Manifests(PathBuf),
    Kubernetes(KubeSettings),
}

impl Origin {
    fn of(args: &RunArgs) -> Self {
        match &args.manifests {
            Some(folder) => Self::Manifests(folder.clone()),
            None => Self::Kubernetes(KubeSettings {
                kubeconfig: args.kubeconfig.clone(),
                api_server: args.api_server.clone(),
                node_name: args.node_name.clone(),
                timing: source::kube::Timing::default(),
            }),
        }
    }

    async fn events(&self, node_name: &str, cancel: CancellationToken) -> Result<Events> {
        match self {
            Self::Manifests(_) => Ok(Events::nowhere()),
            Self::Kubernetes(settings) => {
                Ok(Events::to(source::kube::client(settings).await?, node_name, cancel))
            }
        }
    }

    fn start(
        self,
        changes: mpsc::Sender<Change>,
        state: watch::Sender<SourceState>,
        cancel: CancellationToken,
    ) -> JoinHandle<Result<()>> {
        match self {
            Self::Manifests(folder) => {
                info!("reading Services and EndpointSlices from {}", folder.display());
                tokio::spawn(source::manifests::run(folder, changes, state, cancel))
            }
            Self::Kubernetes(settings) => tokio::spawn(source::kube::run(settings, changes, state, cancel)),
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

/// A 400th of the node's memory, about 110 bytes a flow and family, within reason.
fn default_max_flows() -> u32 {
    const BYTES: u64 = 110;
    const SHARE: u64 = 400;
    let memory = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    u32::try_from(memory / SHARE / BYTES).unwrap_or(u32::MAX).clamp(1 << 16, 1 << 20)
}
