//! The controller of interfaces: the node's network, the programs that it needs, and whether they are attached.

mod check;
mod foreign_programs;
mod fragments;
mod pods;
mod routes;
mod schedule;
mod stack;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use anyhow::Result;
use rtnetlink::Handle;
use tracing::{info, warn};

pub(super) use self::routes::Changes;
use self::{
    check::Checks,
    pods::Pods,
    routes::{Routes, note_route_hints},
    schedule::Schedule,
};
use super::reports::Reports;
use crate::{
    config::{Settings, topology_config},
    datapath::Datapath,
    model::plan::IpFamily,
    net::{
        interfaces::{self, Happened, Known},
        rules,
        topology::{PodDatapath, Topology, TopologyConfig},
    },
    observe::events::Event,
};

/// Requirements of Services on the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ServiceNeeds {
    /// Addresses of the Node object.
    pub(super) node_addresses: Vec<IpAddr>,
    /// Some Service is not served by sockets alone.
    pub(super) packets: bool,
}

/// Interfaces, addresses and pods, and the programs at them.
pub(super) struct InterfaceController {
    netlink: Handle,
    topology_config: TopologyConfig,
    /// The topology that the data path has.
    pub(super) topology: Topology,
    routes: Routes,
    /// How pods were served when the interfaces were looked at last.
    followed: PodDatapath,
    /// Warnings about the network that were logged already.
    logged: Vec<String>,
    /// Interfaces, by index, where others' programs were looked for already.
    searched: BTreeSet<u32>,
    /// Whether the stack could not be made to cut packets when that was tried last.
    fragments_failed: bool,
    pub(super) pods: Pods,
    checks: Checks,
    /// When to look at the interfaces.
    pub(super) schedule: Schedule,
    reports: Reports,
}

/// The network as it was read.
pub(super) struct Found {
    pub(super) topology: Topology,
    pod_datapath: PodDatapath,
}

impl InterfaceController {
    /// Nothing was looked at yet.
    pub(super) fn new(settings: &Settings, netlink: Handle, datapath: &Datapath, reports: Reports) -> Self {
        Self {
            netlink,
            topology_config: topology_config(settings),
            topology: Topology::default(),
            routes: Routes::default(),
            followed: settings.pod_datapath,
            logged: Vec::new(),
            searched: BTreeSet::new(),
            fragments_failed: false,
            pods: Pods::new(settings.pod_datapath == PodDatapath::Auto, datapath.packet_pods()),
            checks: Checks::default(),
            schedule: Schedule::default(),
            reports,
        }
    }

    /// Whether nodePorts are served at some of the node's addresses only.
    pub(super) fn restricts_nodeports(&self) -> bool {
        !self.topology_config.nodeport_addresses.is_empty()
    }

    /// Other interfaces need programs than before.
    pub(super) fn serves_otherwise(&self, needs: &ServiceNeeds) -> bool {
        self.pod_datapath(needs) != self.followed
    }

    fn pod_datapath(&self, needs: &ServiceNeeds) -> PodDatapath {
        pod_datapath(self.topology_config.pod_datapath, needs.packets)
    }

    /// Whether all pods' interfaces need programs.
    fn all_pods_need_packets(&self, needs: &ServiceNeeds) -> bool {
        self.pod_datapath(needs) != PodDatapath::Auto
    }

    /// An event: it may have detached programs, or require others.
    pub(super) fn note(&mut self, happened: &Happened) {
        if !matches!(happened, Happened::NewRoute(_) | Happened::LostRoute(_)) {
            self.checks.suspect();
        }
        if let Some(at) = self.routes.read_at(happened) {
            self.schedule.at(at);
        }
    }

    /// The network for maps that are filled before programs use them.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn read_first(&mut self, needs: &ServiceNeeds) -> Result<Topology> {
        let interfaces = interfaces::read(&self.netlink).await?;
        Ok(Topology::new(&interfaces, &needs.node_addresses, &self.topology_config))
    }

    /// Reads the network, prepares the kernel's stack for it, and reports problems.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) async fn read(&mut self, needs: &ServiceNeeds) -> Result<Found> {
        let started = Instant::now();
        let (interfaces, routes) = interfaces::read_with_routes(&self.netlink).await?;
        self.routes = Routes::new(Known::new(&interfaces, &routes), started.elapsed());
        let pod_datapath = self.pod_datapath(needs);
        if pod_datapath != self.followed {
            info!("pods: {}", describe(pod_datapath));
        }
        let topology_config = TopologyConfig { pod_datapath, ..self.topology_config.clone() };
        let mut topology = Topology::new(&interfaces, &needs.node_addresses, &topology_config);
        self.pods.first_check(&topology.pods).await?;
        self.pods.choose(&mut topology.pods, self.all_pods_need_packets(needs));
        note_route_hints(&routes, &interfaces, &mut topology);
        self.prepare_stack(&mut topology);
        topology.fragments = self.prepare_fragments(&topology);
        topology.rules = rules::choose_by_source(&self.netlink).await?;
        self.report_network(&topology);
        Ok(Found { topology, pod_datapath })
    }

    /// Reports problems of the network, and logs the new ones.
    fn report_network(&mut self, topology: &Topology) {
        let warnings: Vec<String> =
            topology.network_warnings.iter().chain(&topology.warnings).cloned().collect();
        for warning in warnings.iter().filter(|warning| !self.logged.contains(warning)) {
            warn!("{warning}");
            if topology.network_warnings.contains(warning) {
                self.reports.events.send(Event::of_node("NetworkProblem", "FollowNetwork", warning));
            }
        }
        self.logged = warnings;
        self.reports.health.set_network(topology.network_warnings.clone());
        self.reports.metrics.set_network_problems(topology.network_warnings.len());
        if topology.nodeport_addresses != self.topology.nodeport_addresses {
            let addresses: Vec<String> =
                topology.nodeport_addresses.iter().map(ToString::to_string).collect();
            info!("nodePorts are served at {}", addresses.join(", "));
        }
    }

    /// The data path follows this now.
    pub(super) fn follow(&mut self, found: Found) {
        self.topology = found.topology;
        self.followed = found.pod_datapath;
    }

    /// After an attempt to follow the network: plans the next one if it failed.
    pub(super) fn plan_retry(&mut self, result: Result<()>) {
        self.schedule.set(match result {
            Ok(()) => {
                self.checks.succeeded();
                None
            }
            Err(error) => {
                let wait = self.checks.failed(format!("cannot follow the node's network: {error:#}"));
                Some(tokio::time::Instant::now() + wait)
            }
        });
        self.reports.health.set_network_failure(self.checks.failure());
    }

    /// Whether something that was attached or set is gone, or could not be attached. Then the network must be read again.
    pub(super) async fn has_lost(&mut self, datapath: &mut Datapath) -> bool {
        self.check_hooks(datapath).await
            || datapath.failed_hooks().next().is_some()
            || self.lost_rule()
            || self.lost_rule_for_fragments()
    }

    /// The node's own address, of each family: that of the Node object, else one to pass connections on from.
    pub(super) fn primary_addresses(&self, node_addresses: &[IpAddr]) -> Vec<IpAddr> {
        let sources = self.topology.uplinks.iter().flat_map(|uplink| &uplink.sources);
        let all = || node_addresses.iter().chain(sources.clone()).copied();
        IpFamily::ALL
            .into_iter()
            .filter_map(|family| all().find(|address| IpFamily::of(address) == family))
            .collect()
    }
}

/// How pods are served: services that the socket hooks cannot serve need the programs at their interfaces, too.
fn pod_datapath(configured: PodDatapath, needs_packets: bool) -> PodDatapath {
    match configured {
        PodDatapath::Auto | PodDatapath::Socket if needs_packets => PodDatapath::Both,
        configured => configured,
    }
}

/// In words, for the log.
pub(super) fn describe(pod_datapath: PodDatapath) -> &'static str {
    match pod_datapath {
        PodDatapath::Auto => "socket hooks, and tc programs where those cannot serve",
        PodDatapath::Socket => "socket hooks",
        PodDatapath::Tc => "tc programs",
        PodDatapath::Both => "socket hooks and tc programs",
    }
}
