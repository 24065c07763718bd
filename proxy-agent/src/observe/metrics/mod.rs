//! Metrics. Names beginning with `kubeproxy_` are those of kube-proxy, so that its dashboards work.

mod at_scrape;
mod kube_proxy;
mod process;
mod text;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};
use proxy_common::{V4, V6};
use tokio::sync::watch;

use self::{at_scrape::AtScrape, kube_proxy::KubeProxy, process::Process};
pub use self::{kube_proxy::Probe, text::Format};
use super::status::{self, HookStatus, MapStatus, ServiceStatus};
use crate::{
    datapath::{Hook, flows::STATES, maps, peer_cells, pins::Pins, services::Usage},
    flow_gc,
    model::{objects::Change, plan::IpFamily},
    socket_termination,
    source::{SourceState, kube::RequestCounts},
    sync::Reason,
};

/// A label set of one label.
type Label = [(&'static str, &'static str); 1];

/// Everything that is counted and measured. Share it in an `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    kube_proxy: KubeProxy,
    active: Gauge,
    apply_errors: Counter,
    service_failures: Gauge,
    service_problems: Family<Label, Gauge>,
    maps_grown: Counter,
    map_growth_failures: Counter,
    service_ports: Gauge,
    frontends: Gauge,
    backends: Gauge,
    map_entries: Family<Label, Gauge>,
    hook_failures: Gauge,
    hooks_restored: Counter,
    service_health_failures: Gauge,
    network_problems: Gauge,
    conntrack_failures: Gauge,
    configuration_rejected: Gauge,
    hooks: Arc<Mutex<Vec<Hook>>>,
    flows: Family<[(&'static str, &'static str); 2], Gauge>,
    pins: Pins,
}

impl Metrics {
    /// All counts zero. The programs' counters are read from the pinned maps at each scrape.
    pub fn new(
        pins: Pins,
        source: watch::Receiver<SourceState>,
        socket_termination: &socket_termination::Counts,
        flow_gc: &flow_gc::Counts,
        requests: &RequestCounts,
    ) -> Self {
        let mut registry = Registry::default();
        let kube_proxy = KubeProxy::new(&mut registry, SystemTime::now());
        let mut metrics = Self {
            registry,
            kube_proxy,
            active: Gauge::default(),
            apply_errors: Counter::default(),
            service_failures: Gauge::default(),
            service_problems: Family::default(),
            maps_grown: Counter::default(),
            map_growth_failures: Counter::default(),
            service_ports: Gauge::default(),
            frontends: Gauge::default(),
            backends: Gauge::default(),
            map_entries: Family::default(),
            hook_failures: Gauge::default(),
            hooks_restored: Counter::default(),
            service_health_failures: Gauge::default(),
            network_problems: Gauge::default(),
            conntrack_failures: Gauge::default(),
            configuration_rejected: Gauge::default(),
            hooks: Arc::default(),
            flows: flow_gc.flows.clone(),
            pins: pins.clone(),
        };
        metrics.register();
        requests.register(&mut metrics.registry);
        metrics.registry.register(
            "proxy_agent_sockets_ended",
            "Sockets that were ended because their endpoint is gone",
            socket_termination.ended.clone(),
        );
        metrics.registry.register(
            "proxy_agent_socket_failures",
            "Network namespaces whose sockets could not be looked at or ended",
            socket_termination.failed.clone(),
        );
        metrics.registry.register(
            "proxy_agent_flows",
            "Flows of the packet programs by state, counted about twice a minute",
            flow_gc.flows.clone(),
        );
        metrics.registry.register(
            "proxy_agent_flows_expired",
            "Flows that were removed because no packet came for too long",
            flow_gc.expired.clone(),
        );
        metrics.registry.register_collector(Box::new(Process));
        let at_scrape = AtScrape { pins, source, hooks: metrics.hooks.clone() };
        metrics.registry.register_collector(Box::new(at_scrape));
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "proxy_agent_active",
            "1 if this agent writes the maps; 0 while it stands by for another one, and when it handed over",
            self.active.clone(),
        );
        registry.register(
            "proxy_agent_apply_errors",
            "Batches of changes that could not be brought into the data path",
            self.apply_errors.clone(),
        );
        registry.register(
            "proxy_agent_service_failures",
            "Services that are not programmed as they should be",
            self.service_failures.clone(),
        );
        registry.register(
            "proxy_agent_service_problems",
            "Problems of Services, by reason; a Service may have several",
            self.service_problems.clone(),
        );
        registry.register(
            "proxy_agent_map_growths",
            "How often maps of services were replaced by larger ones",
            self.maps_grown.clone(),
        );
        registry.register(
            "proxy_agent_map_growth_failures",
            "How often the kernel refused larger maps",
            self.map_growth_failures.clone(),
        );
        registry.register(
            "proxy_agent_service_ports",
            "Service ports served, counted per address family",
            self.service_ports.clone(),
        );
        registry.register("proxy_agent_frontends", "Addresses and node ports served", self.frontends.clone());
        registry.register("proxy_agent_backends", "Endpoints of service ports", self.backends.clone());
        registry.register(
            "proxy_agent_map_entries",
            "Entries used of a map that the agent fills",
            self.map_entries.clone(),
        );
        registry.register(
            "proxy_agent_hook_failures",
            "Programs that are not attached where they should be",
            self.hook_failures.clone(),
        );
        registry.register(
            "proxy_agent_hooks_restored",
            "Programs that something else had detached, and that were attached again",
            self.hooks_restored.clone(),
        );
        registry.register(
            "proxy_agent_service_health_failures",
            "Services whose health check node port cannot be answered",
            self.service_health_failures.clone(),
        );
        registry.register(
            "proxy_agent_network_problems",
            "Configured interfaces, addresses and the like that do not exist",
            self.network_problems.clone(),
        );
        registry.register(
            "proxy_agent_conntrack_failures",
            "Settings of the kernel's connection tracking that could not be set",
            self.conntrack_failures.clone(),
        );
        registry.register(
            "proxy_agent_configuration_rejected",
            "1 if the configuration file has something that cannot work, and the agent keeps the previous settings",
            self.configuration_rejected.clone(),
        );
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("proxy_agent_build", "The agent itself", version);
    }

    /// Whether this agent writes the maps.
    pub fn set_active(&self, active: bool) {
        self.active.set(active.into());
    }

    /// A change came that must be applied.
    pub fn queued(&self, change: &Change) {
        self.kube_proxy.queued(change);
    }

    /// A batch of changes was applied; both families are applied together. `full`: all there is was compared, as after
    /// the start.
    pub fn applied(&self, took: Duration, full: bool) {
        self.kube_proxy.taken();
        self.kube_proxy.applied(took, full);
    }

    /// A batch could not be applied, or not all of it.
    pub fn failed(&self) {
        self.kube_proxy.taken();
        self.apply_errors.inc();
    }

    /// The change of an EndpointSlice is in the data path now; it was triggered then. A change triggered before the
    /// agent started is not measured.
    pub fn programmed(&self, family: IpFamily, triggered: SystemTime) {
        self.kube_proxy.programmed(family, triggered);
    }

    /// Service ports of a family with policy Local, by policy, that have endpoints but none here.
    pub fn set_no_local_endpoints(&self, family: IpFamily, internal: usize, external: usize) {
        self.kube_proxy.set_no_local_endpoints(family, internal, external);
    }

    /// A probe was answered with this HTTP status.
    pub fn probed(&self, probe: Probe, code: u16) {
        self.kube_proxy.probed(probe, code);
    }

    /// How much there is in the maps now.
    pub fn set_usage(&self, usage: &Usage) {
        self.service_ports.set(usage.service_ports.into());
        self.backends.set(usage.backends.into());
        self.frontends.set(i64::try_from(usage.frontends).unwrap_or(i64::MAX));
        let [v4, v6] = usage.slots;
        for (map, entries) in
            [("service_names", usage.service_ports), ("backends_v4", v4), ("backends_v6", v6)]
        {
            self.map_entries.get_or_create(&[("map", map)]).set(entries.into());
        }
    }

    /// Attached programs, and how many could not be attached.
    pub fn set_hooks<'h>(&self, attached: impl IntoIterator<Item = &'h Hook>, failed: usize) {
        *self.hooks.lock().unwrap_or_else(PoisonError::into_inner) = attached.into_iter().cloned().collect();
        self.hook_failures.set(i64::try_from(failed).unwrap_or(i64::MAX));
    }

    /// Counts programs that another program had detached.
    pub fn restored_hooks(&self, count: usize) {
        self.hooks_restored.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// How many Services the maps did not take as they should be.
    pub fn set_service_failures(&self, failed: usize) {
        self.service_failures.set(i64::try_from(failed).unwrap_or(i64::MAX));
    }

    /// How many Services have a problem of this kind.
    pub fn set_service_problems(&self, reason: Reason, count: usize) {
        let gauge = self.service_problems.get_or_create(&[("reason", reason.name())]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Maps were replaced by larger ones, or could not be.
    pub fn maps_grew(&self, succeeded: bool) {
        if succeeded { &self.maps_grown } else { &self.map_growth_failures }.inc();
    }

    /// How many Services' health check node ports cannot be answered.
    pub fn set_service_health_failures(&self, failed: usize) {
        self.service_health_failures.set(i64::try_from(failed).unwrap_or(i64::MAX));
    }

    /// How many configured names and addresses the node's network does not have.
    pub fn set_network_problems(&self, problems: usize) {
        self.network_problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }

    /// How many settings of the kernel's connection tracking could not be set.
    pub fn set_conntrack_failures(&self, failed: usize) {
        self.conntrack_failures.set(i64::try_from(failed).unwrap_or(i64::MAX));
    }

    /// Whether the configuration file has something that cannot work.
    pub fn set_configuration_rejected(&self, rejected: bool) {
        self.configuration_rejected.set(rejected.into());
    }

    /// Served services, and changes that wait.
    pub(super) fn services(&self) -> ServiceStatus {
        ServiceStatus {
            ports: self.service_ports.get(),
            frontends: self.frontends.get(),
            endpoints: self.backends.get(),
            failed: self.service_failures.get(),
            pending_changes: self.kube_proxy.pending(),
            last_applied: self.kube_proxy.last_applied().and_then(status::timestamp),
        }
    }

    /// Attached programs, in order.
    pub(super) fn hooks(&self) -> Vec<HookStatus> {
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut hooks: Vec<HookStatus> = hooks.iter().map(HookStatus::from).collect();
        hooks.sort();
        hooks
    }

    /// Programs that are not attached where they should be.
    pub(super) fn missing_hooks(&self) -> i64 {
        self.hook_failures.get()
    }

    /// Flows by state.
    pub(super) fn flows(&self) -> BTreeMap<String, i64> {
        let count = |state: &'static str| {
            ["IPv4", "IPv6"].iter().map(|family| self.flows_of(family, state)).sum::<i64>()
        };
        STATES.iter().map(|state| ((*state).to_owned(), count(state))).collect()
    }

    fn flows_of(&self, family: &'static str, state: &'static str) -> i64 {
        self.flows.get(&[("ip_family", family), ("state", state)]).map_or(0, |flows| flows.get())
    }

    /// How full the maps are whose entries are counted.
    pub(super) fn maps(&self) -> Vec<MapStatus> {
        let filled = |name: &'static str| {
            let entries = self.map_entries.get(&[("map", name)]).map_or(0, |entries| entries.get());
            (name, entries)
        };
        let flows = |name, family| (name, STATES.iter().map(|state| self.flows_of(family, state)).sum());
        let maps = [
            filled("service_names"),
            filled("backends_v4"),
            filled("backends_v6"),
            flows("flows_v4", "IPv4"),
            flows("flows_v6", "IPv6"),
        ];
        // Read now: no event of the agent's changes them.
        let cells = [
            ("peer_cells_v4", peer_cells::in_use::<V4>(&self.pins)),
            ("peer_cells_v6", peer_cells::in_use::<V6>(&self.pins)),
        ];
        let cells =
            cells.into_iter().filter_map(|(name, in_use)| Some((name, in_use.ok()?.try_into().ok()?)));
        maps.into_iter()
            .chain(cells)
            .filter_map(|(name, entries)| {
                let capacity = maps::capacity(&self.pins, name)?;
                Some(MapStatus { name: name.to_owned(), entries, capacity })
            })
            .collect()
    }

    /// All metrics as text.
    pub fn encode(&self, format: Format) -> Result<String, fmt::Error> {
        format.encode(&self.registry)
    }
}

#[cfg(test)]
mod tests;
