//! The running agent and the node's network: interfaces, addresses, network namespaces.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _, stream};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{Agent, SETTLE, sockets::Found};
use crate::{
    model::plan::IpFamily,
    net::{
        interfaces::{self, Happened, Interface, Known, News},
        routes::{self, MAX_HINTS, Route},
        rules,
        topology::{PodDatapath, Topology, Wishes},
        xfrm,
    },
    observe::{events::Event, service_health::Addresses},
};

/// What is known of routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    known: Known,
    /// How long it took to read the network.
    cost: Duration,
}

impl Routes {
    /// Looks for what matters little take a twentieth of the time at most.
    const REST: u32 = 20;

    /// When to look at the network because of what happened; none: it decides nothing.
    pub(super) fn look_at(&self, happened: &Happened) -> Option<Instant> {
        let wait = match self.known.news(happened) {
            News::None => return None,
            News::Little => SETTLE.max(self.cost * Self::REST),
            News::Much => SETTLE,
        };
        Some(Instant::now() + wait)
    }
}

impl Agent {
    /// How pods are served: what the socket hooks cannot serve needs the programs at their interfaces, too.
    pub(super) fn pod_datapath(&self) -> PodDatapath {
        match self.wishes.pod_datapath {
            PodDatapath::Auto | PodDatapath::Socket if self.sync.needs_packets(self.knows_cookies) => {
                PodDatapath::Both
            }
            wished => wished,
        }
    }

    /// Do all pods' interfaces need programs?
    pub(super) fn all_pods_need_packets(&self) -> bool {
        self.pod_datapath() != PodDatapath::Auto
    }

    /// The first time that source ranges ask for it, finds out which address each network namespace has: sockets that are
    /// not known are left to the packet path, where a node has none.
    pub(super) async fn know_namespaces(&mut self) {
        if self.knows_namespaces || !self.sync.has_source_ranges() {
            return;
        }
        self.knows_namespaces = true;
        let primary = self.primary_addresses();
        match self.sockets.first_look(primary).await {
            Ok(addresses) => self.learn_of_sockets(Found::Namespaces(addresses)),
            Err(error) => warn!("{error:#}"),
        }
    }

    /// Looks which address each network namespace has, if that decides anything.
    pub(super) fn look_for_namespaces(&mut self) {
        if self.sync.has_source_ranges() {
            self.sockets.look_for_namespaces(self.primary_addresses());
        }
    }

    /// The node's own address, of each family: that of the Node object, else one to pass connections on from.
    fn primary_addresses(&self) -> Vec<IpAddr> {
        let sources = self.topology.uplinks.iter().flat_map(|uplink| &uplink.sources);
        let all = || self.sync.node_addresses().iter().chain(sources.clone()).copied();
        [IpFamily::V4, IpFamily::V6]
            .into_iter()
            .filter_map(|family| all().find(|address| IpFamily::of(address) == family))
            .collect()
    }

    pub(super) fn learn_of_sockets(&mut self, found: Found) {
        let result = match found {
            Found::Namespaces(mut addresses) => {
                // Those of pods may be newer.
                self.pods.namespaces.clone_from(&addresses);
                self.pods.add_addresses(&mut addresses);
                self.datapath.set_netns_addresses(&addresses)
            }
            Found::Kept(kept) => {
                self.sockets.sweep(&kept, &self.datapath.services);
                Ok(())
            }
        };
        if let Err(error) = result {
            error!("{error:#}");
        }
    }

    /// Looks at interfaces and addresses, and attaches and writes what they ask for.
    pub(super) async fn look_at_network(&mut self) -> Result<()> {
        let started = Instant::now();
        let (interfaces, routes) = interfaces::read_with_routes(&self.netlink).await?;
        self.routes = Routes { known: Known::new(&interfaces, &routes), cost: started.elapsed() };
        let pod_datapath = self.pod_datapath();
        if pod_datapath != self.followed {
            info!("pods: {}", describe(pod_datapath));
        }
        let wishes = Wishes { pod_datapath, ..self.wishes.clone() };
        let mut topology = Topology::new(&interfaces, self.sync.node_addresses(), &wishes);
        self.pods.first_look(&topology.pods).await?;
        self.pods.choose(&mut topology.pods, self.all_pods_need_packets());
        learn_from_routes(&routes, &interfaces, &mut topology);
        self.prepare_stack(&mut topology);
        topology.fragments = self.prepare_fragments(&topology);
        topology.rules = rules::choose_by_source(&self.netlink).await?;
        let warnings: Vec<String> = topology.complaints.iter().chain(&topology.warnings).cloned().collect();
        for warning in warnings.iter().filter(|warning| !self.said.contains(warning)) {
            warn!("{warning}");
            if topology.complaints.contains(warning) {
                self.events.send(Event::of_node("NetworkProblem", "FollowNetwork", warning));
            }
        }
        self.said = warnings;
        self.health.set_network(topology.complaints.clone());
        self.metrics.set_network_problems(topology.complaints.len());
        if topology.nodeport_addresses != self.topology.nodeport_addresses {
            let addresses: Vec<String> =
                topology.nodeport_addresses.iter().map(ToString::to_string).collect();
            info!("nodePorts are served at {}", addresses.join(", "));
        }
        let gains = |new: &BTreeSet<IpAddr>, old: &BTreeSet<IpAddr>| !new.is_subset(old);
        if gains(&topology.nodeport_addresses, &self.topology.nodeport_addresses)
            || gains(&topology.snat_sources, &self.topology.snat_sources)
        {
            let frontends = self.datapath.services.udp_frontends(&topology.nodeport_addresses);
            self.seeder.seed(frontends, topology.snat_sources.clone()).await;
        }
        self.datapath.follow(&topology)?;
        self.report_hooks();
        self.sync.set_local_addresses(&topology.local_addresses);
        let restricted = !self.wishes.nodeport_addresses.is_empty();
        let at =
            if restricted { Addresses::These(topology.nodeport_addresses.clone()) } else { Addresses::Any };
        self.service_health.set_addresses(at).await;
        self.topology = topology;
        self.followed = pod_datapath;
        self.attach_more();
        self.look_for_namespaces();
        Ok(())
    }
}

/// Notes what `bpf_fib_lookup` does not report of routes.
fn learn_from_routes(routes: &[Route], interfaces: &[Interface], topology: &mut Topology) {
    topology.encapsulates = routes.iter().any(|route| route.encapsulates_by.is_some());
    match routes::hints(routes, interfaces) {
        Some(hints) => topology.hints = hints,
        None => topology.warnings.push(format!(
            "more than {MAX_HINTS} routes have an MTU or an encapsulation, or are below one that has: services' packets do not obey the MTU of \
             routes (but locked ones), and those to routes with an encapsulation have the address of another interface as source"
        )),
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

/// Says when the node's network may have changed: interfaces, addresses, routes, IPsec policies.
pub(super) fn changes() -> Result<impl Stream<Item = Option<Happened>> + Unpin> {
    let interfaces = interfaces::changes()?.map(Some).chain(stream::once(std::future::ready(None)));
    let policies = xfrm::changes().context("cannot follow IPsec policies")?;
    Ok(stream::select(interfaces, policies.map(|()| Some(Happened::Other))))
}
