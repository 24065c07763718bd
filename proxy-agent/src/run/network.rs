//! The running agent and the node's network: interfaces, addresses, network namespaces.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _, stream};
use ipnet::IpNet;
use tracing::{error, info, warn};

use super::{Agent, sockets::Found};
use crate::{
    cli::PodDatapath,
    model::plan::IpFamily,
    net::{
        forwarding, interfaces,
        topology::{Topology, Wishes},
        untracked, xfrm,
    },
    observe::service_health::Addresses,
};

impl Agent {
    /// How pods are served: what the socket hooks cannot serve needs the programs at their interfaces, too.
    pub(super) fn pod_datapath(&self) -> PodDatapath {
        match self.wishes.pod_datapath {
            PodDatapath::Socket if self.sync.needs_packets() => PodDatapath::Both,
            wished => wished,
        }
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
            Found::Namespaces(addresses) => self.datapath.set_netns_addresses(&addresses),
            Found::Kept(kept) => {
                self.sockets.sweep(&kept, &self.datapath.services);
                Ok(())
            }
        };
        if let Err(error) = result {
            error!("{error:#}");
        }
    }

    /// Destinations of IPsec policies; as before if the kernel does not tell.
    fn ipsec_policies(&self, complaints: &mut Vec<String>) -> BTreeSet<IpNet> {
        let before = &self.topology.policies;
        let policies = match xfrm::destinations() {
            Ok(policies) => policies,
            Err(error) => {
                complaints.push(format!(
                    "cannot list IPsec policies: {error}; what is forwarded to remote endpoints may not obey them"
                ));
                return before.clone();
            }
        };
        if policies.is_empty() {
            if !before.is_empty() {
                if let Err(error) = untracked::remove() {
                    warn!("cannot remove the nftables table `proxy-agent`: {error}");
                }
                info!("there are no IPsec policies any more: all packets are sent past the kernel's stack");
            }
            return policies;
        }
        if before.is_empty() {
            info!(
                "there are IPsec policies: what is forwarded to their destinations goes through the kernel's stack"
            );
        }
        if let Err(error) = forwarding::accept_from_loopback() {
            complaints
                .push(format!("{error:#}: services' packets to the destinations of IPsec policies are lost"));
        }
        if let Err(error) = untracked::ensure() {
            complaints.push(format!(
                "cannot make the nftables rule `iif lo notrack`: {error}; firewalls that drop what is INVALID to conntrack \
                 drop services' TCP packets to the destinations of IPsec policies"
            ));
        }
        policies
    }

    /// Is the rule that packets of [`Self::ipsec_policies`] need gone? Firewalls that load their rules anew remove those of others.
    pub(super) fn lost_rule(&self) -> bool {
        !self.topology.policies.is_empty() && !untracked::is_there()
    }

    /// Looks at interfaces and addresses, and attaches and writes what they ask for.
    pub(super) async fn look_at_network(&mut self) -> Result<()> {
        let interfaces = interfaces::read(&self.netlink).await?;
        let pod_datapath = self.pod_datapath();
        if pod_datapath != self.followed {
            info!("pods: {}", describe(pod_datapath));
        }
        let wishes = Wishes { pod_datapath, ..self.wishes.clone() };
        let mut topology = Topology::new(&interfaces, self.sync.node_addresses(), &wishes);
        topology.policies = self.ipsec_policies(&mut topology.complaints);
        topology.fragments = self.prepare_fragments(&topology);
        for complaint in &topology.complaints {
            if !self.said.contains(complaint) {
                warn!("{complaint}");
            }
        }
        self.said.clone_from(&topology.complaints);
        self.health.set_network(topology.complaints.clone());
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
        self.look_for_others(&topology).await;
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
        self.followed = pod_datapath;
        self.look_for_namespaces();
        Ok(())
    }
}

/// In words, for the log.
pub(super) fn describe(pod_datapath: PodDatapath) -> &'static str {
    match pod_datapath {
        PodDatapath::Socket => "socket hooks",
        PodDatapath::Tc => "tc programs",
        PodDatapath::Both => "socket hooks and tc programs",
    }
}

/// Says when the node's network may have changed: interfaces, addresses, routes, IPsec policies.
pub(super) fn changes() -> Result<impl Stream<Item = Option<()>> + Unpin> {
    let interfaces = interfaces::changes()?.map(Some).chain(stream::once(std::future::ready(None)));
    let policies = xfrm::changes().context("cannot follow IPsec policies")?;
    Ok(stream::select(interfaces, policies.map(Some)))
}
