//! The running agent: one data path, the parts that work on it, and the work that concerns more than one of them.

use std::{net::IpAddr, time::Instant};

use anyhow::{Context as _, Result};
use proxy_sys::socket::netns_cookie;
use rtnetlink::Handle;
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::{
    conntrack::Conntrack,
    interfaces::{InterfaceController, ServiceNeeds, describe},
    map_growth::MapGrowth,
    pod_programs::PodPrograms,
    reports::Reports,
    services::ServiceReconciler,
    sockets::{Found, Namespaces, SocketController},
    turn::{Known, Observed, cgroup_root},
};
use crate::{
    config::{Settings, object_config},
    datapath::{Datapath, Loaded, ObjectConfig, Prepared, pins::Pins},
    flow_gc::FlowGc,
    neighbours::Prober,
    net::{forwarding, pods::Pod, reserved_ports},
    observe::{Events, drops::Drops, events::Event},
    socket_termination::{Records, SocketTerminator},
};

/// The running agent.
pub(super) struct Agent {
    pub(super) datapath: Datapath,
    pub(super) services: ServiceReconciler,
    pub(super) interfaces: InterfaceController,
    pub(super) sockets: SocketController,
    pub(super) reports: Reports,
    drops: Drops,
    conntrack: Conntrack,
    pub(super) pod_programs: PodPrograms,
    _flow_gc: FlowGc,
    _map_growth: MapGrowth,
    _prober: Prober,
}

/// Programs that use the maps that are pinned now. Loading some takes long, and blocks.
async fn renewed(
    prepared: Prepared,
    config: &ObjectConfig,
    pins: &Pins,
    fills_first: bool,
) -> Result<Prepared> {
    let (config, pins) = (config.clone(), pins.clone());
    let renew = move || {
        if fills_first { prepared.begin_to_fill(&config, &pins) } else { prepared.renew(&config, &pins) }
    };
    spawn_blocking(renew).await.context("loading the programs ended unexpectedly")?
}

impl Agent {
    /// Begins to serve: attaches the programs, and fills maps before that, where required.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub(super) async fn start(
        settings: &Settings,
        netlink: Handle,
        observed: Observed,
        events: Events,
        known: Known,
    ) -> Result<Self> {
        let Known { sync, prepared, fills_first } = known;
        let sockets_first = prepared.lacks_uplinks();
        prepare_node(settings);
        let config = object_config(settings);
        let Observed { pins, health, metrics, counts, sweeps, listeners } = observed;
        let reports = Reports { health, metrics, events };
        let prepared = renewed(prepared, &config, &pins, fills_first).await?;
        let mut datapath = Datapath::open_prepared(prepared, &config, &pins, settings.xdp)?;
        if settings.kernel_log.is_some() {
            datapath.follow_kernel_log()?;
        }
        let cgroup = cgroup_root(settings)?;
        let fills_maps = fills_first || sockets_first;
        if !fills_maps {
            datapath.attach_sockets(&cgroup)?;
        }
        info!(
            "pods: {}; node: socket hooks; xdp: {:?}; kernel: {:?}",
            describe(settings.pod_datapath),
            settings.xdp,
            datapath.features()
        );
        let records = datapath.socket_reader()?.map_or(Records::Notes(pins.clone()), Records::Sockets);
        let socket_termination = SocketTerminator::start(records, counts);
        let flow_gc = FlowGc::start(&pins, settings.timeouts, sweeps)?;
        let map_growth = MapGrowth::start(&pins, settings.max_flows, reports.clone())?;
        let interfaces = InterfaceController::new(settings, netlink, &datapath, reports.clone());
        let prober = Prober::start(&pins)?;
        let mut agent = Self {
            datapath,
            services: ServiceReconciler::new(settings, sync, pins, listeners, reports.clone()),
            interfaces,
            sockets: SocketController::new(
                socket_termination,
                settings.reset_removed_tcp,
                netns_cookie().is_ok(),
            ),
            reports,
            drops: Drops::default(),
            conntrack: Conntrack::new(settings.conntrack),
            pod_programs: PodPrograms::default(),
            _flow_gc: flow_gc,
            _map_growth: map_growth,
            _prober: prober,
        };
        agent.services.inherit();
        agent.services.update_eligibility();
        agent.conntrack.apply(&agent.reports);
        if fills_maps {
            agent.fill().await?;
            agent.datapath.attach_sockets(&cgroup)?;
        }
        if sockets_first {
            agent.load_uplink_programs().await;
        }
        agent.follow_network().await?;
        if agent.pod_programs.are_loading() {
            let loaded = agent.pod_programs.end().await;
            agent.take_pod_programs(loaded);
        }
        agent.interfaces.attach_first(&mut agent.datapath);
        agent.reports.events.send(Event::starting());
        Ok(agent)
    }

    /// Loads the programs of uplinks. If the kernel refuses one, that is tried again and reported when it is attached.
    async fn load_uplink_programs(&mut self) {
        let loading = spawn_blocking(self.datapath.loading_of_uplink_programs()).await;
        match loading.context("loading them ended unexpectedly").and_then(|result| result) {
            Ok(loaded) => drop(self.datapath.add(loaded)),
            Err(error) => debug!("{error:#}"),
        }
    }

    /// Fills the maps, before programs use them.
    async fn fill(&mut self) -> Result<()> {
        let topology = self.interfaces.read_first(&self.needs()).await?;
        self.services.sync.set_local_addresses(&topology.local_addresses);
        self.datapath.fill(&topology)?;
        self.catch_up().await
    }

    /// Applies the state known at the start, if it is complete.
    ///
    /// # Errors
    /// When the agent must be started again.
    pub(super) async fn catch_up(&mut self) -> Result<()> {
        if self.services.sync.is_complete() && !self.services.is_synced() {
            self.apply().await?;
        }
        Ok(())
    }

    fn needs(&self) -> ServiceNeeds {
        self.services.needs(self.sockets.knows_sources())
    }

    /// Brings the maps of Services up to date, and with them sockets. Returns how many Services it looked at.
    ///
    /// # Errors
    /// When the agent must be started again.
    pub(super) async fn apply(&mut self) -> Result<usize> {
        let attaches = self.datapath.has_pending_hooks();
        let written = self.services.write(&mut self.datapath, &self.interfaces.topology).await?;
        let (has_lost_hooks, services) = (written.has_lost_hooks, written.services());
        // Moving to larger maps attached them.
        if attaches && !self.datapath.has_pending_hooks() {
            self.interfaces.attach_more(&mut self.datapath);
        }
        self.sockets.end_removed(&mut self.datapath.services);
        self.know_namespaces().await;
        if self.services.finish(&mut self.datapath, written).await {
            self.sockets.scan_at_start();
            self.services.mark_synced(&self.datapath);
        }
        if has_lost_hooks || self.interfaces.serves_otherwise(&self.needs()) {
            self.interfaces.schedule.soon();
        }
        Ok(services)
    }

    /// Reads interfaces and addresses, and attaches programs and writes maps for them. After a failure, plans the next attempt.
    pub(super) async fn reconcile_interfaces(&mut self) {
        let result = self.follow_network().await;
        self.interfaces.plan_retry(result);
    }

    async fn follow_network(&mut self) -> Result<()> {
        let found = self.interfaces.read(&self.needs()).await?;
        self.services.prepare_addresses(&mut self.datapath, &self.interfaces.topology, &found.topology).await;
        self.datapath.follow(&found.topology)?;
        self.interfaces.report_hooks(&self.datapath);
        self.services.follow_addresses(&found.topology, self.interfaces.restricts_nodeports()).await;
        self.interfaces.follow(found);
        self.attach_pods();
        self.scan_namespaces();
        Ok(())
    }

    /// Takes over the programs for pods' interfaces, unless larger maps need others.
    pub(super) fn take_pod_programs(&mut self, loaded: Option<Loaded>) {
        if loaded.is_some_and(|loaded| !self.datapath.add(loaded)) && self.datapath.needs_pod_programs() {
            self.pod_programs.load(&self.datapath);
        }
        self.attach_pods();
    }

    /// Attaches programs to pods' interfaces for a moment; there may be more. The first pod that needs them waits until they are loaded.
    pub(super) fn attach_pods(&mut self) {
        if self.datapath.needs_pod_programs() {
            self.pod_programs.load_once(&self.datapath);
        }
        if !self.pod_programs.are_loading() {
            self.interfaces.attach_more(&mut self.datapath);
        }
    }

    /// The first time that a Service has source ranges, finds out which address each network namespace has.
    async fn know_namespaces(&mut self) {
        if !self.services.sync.has_source_ranges() || !self.sockets.begins_scan() {
            return;
        }
        match self.sockets.first_scan(self.primary_addresses()).await {
            Ok(found) => self.apply_scan(found),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Looks which address each network namespace has, if that decides anything.
    fn scan_namespaces(&mut self) {
        if self.services.sync.has_source_ranges() {
            self.sockets.scan_namespaces(self.primary_addresses());
        }
    }

    fn primary_addresses(&self) -> Vec<IpAddr> {
        self.interfaces.primary_addresses(self.services.sync.node_addresses())
    }

    /// Takes over the result of a scan of sockets and network namespaces.
    pub(super) fn apply_scan(&mut self, found: Found) {
        let of_pods = |namespaces: &mut Namespaces| self.interfaces.pods.add_addresses(namespaces);
        self.sockets.apply_scan(found, of_pods, &mut self.datapath);
    }

    /// Pods were looked at: serves each by its way.
    pub(super) fn follow_pods(&mut self, found: Vec<Pod>) {
        let needs = self.needs();
        self.interfaces.follow_pods(found, &needs, &mut self.datapath);
        self.attach_pods();
        let of_pods = |namespaces: &mut Namespaces| self.interfaces.pods.add_addresses(namespaces);
        self.sockets.follow_pods(of_pods, &mut self.datapath);
    }

    /// Regular checks of state that sends no notifications.
    pub(super) async fn check_regularly(&mut self) {
        self.services.retry_health_checks().await;
        self.report_drops();
        self.conntrack.apply(&self.reports);
        self.datapath.remove_expired_watches();
        self.services.tidy(&mut self.datapath);
        self.scan_namespaces();
        if self.interfaces.has_lost(&mut self.datapath).await {
            self.interfaces.schedule.soon();
        }
        if self.services.sync.has_failed() {
            self.services.want_to_apply();
        }
    }

    /// Warns of packets that were dropped since the last look.
    fn report_drops(&mut self) {
        match self.datapath.counters() {
            Ok(counts) => {
                self.drops.look(&counts, Instant::now()).iter().for_each(|warning| warn!("{warning}"));
                self.reports.health.set_drops(self.drops.recent());
            }
            Err(error) => debug!("{error:#}"),
        }
    }
}

/// Reserves ports, and warns of kernel settings that keep packets from passing.
fn prepare_node(settings: &Settings) {
    match reserved_ports::reserve(settings.nodeport_range, settings.snat_ports) {
        Ok(warning) => warning.iter().for_each(|warning| warn!("{warning}")),
        Err(error) => warn!("{error:#}; local sockets may be given ports that the data path uses"),
    }
    for file in forwarding::switched_off() {
        warn!(
            "{file} is 0: the kernel passes no packet on, so nodePorts reach no pod; CNI plugins usually set it to 1"
        );
    }
}
