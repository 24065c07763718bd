//! From interfaces to the topology for the data path: uplinks, pod interfaces, addresses. Pure.

mod roles;
mod settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

pub use self::settings::{NodePortAddresses, PodDatapath};

use self::roles::{Role, Roles};
use super::{interfaces::Interface, routes::Hint};
use crate::{kube_proxy::IPVS_INTERFACE, model::plan::IpFamily};

/// The settings of interfaces.
#[derive(Clone, Debug)]
pub struct TopologyConfig {
    /// `--uplink`.
    pub uplinks: Vec<String>,
    /// `--pod-interface`.
    pub pod_interfaces: Vec<String>,
    /// `--pod-datapath`.
    pub pod_datapath: PodDatapath,
    /// `--nodeport-addresses`.
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// `--bind-address`: the node's primary address of that family, also if the Node object has another one.
    pub bind_address: Option<IpAddr>,
    /// `--snat-address`.
    pub snat_addresses: Vec<IpAddr>,
}

/// An interface that leads off the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Frames have an Ethernet header.
    pub has_link_header: bool,
    /// Is a GRE tunnel.
    pub is_gre: bool,
    /// Made of software: native XDP there loses frames or is not there.
    pub is_virtual: bool,
    /// Index of the bridge it is a port of, or 0.
    pub bridge: u32,
    /// XDP may be attached: it has a default route, the node's address, or a name that was given, or belongs to one that has.
    pub may_have_xdp: bool,
    /// Source addresses for connections that it forwards, one per family at most.
    pub sources: Vec<IpAddr>,
    /// Its MTU in bytes; 0: not known.
    pub mtu: u32,
}

/// The node's side of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Index of the bridge it is a port of, or 0.
    pub bridge: u32,
    /// The id by which this network namespace knows the one at the other end, if that is another one.
    pub peer_namespace: Option<u32>,
}

/// Which IPv4 packets the kernel's stack fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragments {
    /// None: their senders get ICMP errors.
    #[default]
    None,
    /// Packets that are not fragments already.
    Whole,
    /// All.
    All,
}

/// The node's network as the data path needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// All interfaces that may lead off the node, overlays included; those with default routes or the node's addresses first.
    pub uplinks: Vec<Uplink>,
    /// Interfaces of pods, if packets must be translated there.
    pub pods: Vec<PodPort>,
    /// All addresses that connections to remote endpoints may have as source: those that were given, those of [`Uplink::sources`],
    /// and those that the kernel may find for a route.
    pub snat_sources: BTreeSet<IpAddr>,
    /// Addresses of `--snat-address` that exist.
    pub given_snat_sources: Vec<IpAddr>,
    /// Where nodePorts are served.
    pub nodeport_addresses: BTreeSet<IpAddr>,
    /// All addresses of the node, to distinguish its own from others.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Destinations of IPsec policies: the stack must send packets to them. Not worked out here.
    pub policies: BTreeSet<IpNet>,
    /// Attributes of routes that `bpf_fib_lookup` does not report: MTUs, encapsulations. Not worked out here.
    pub hints: BTreeMap<IpNet, Hint>,
    /// A route has an encapsulation, which is the stack's work. Not worked out here.
    pub encapsulates: bool,
    /// Rules choose routes by more than the destination. Not worked out here.
    pub rules: bool,
    /// IPv4 packets that the stack fragments where they are longer than their route's MTU. Not worked out here.
    pub fragments: Fragments,
    /// Configured names and addresses that do not exist, in words.
    pub network_warnings: Vec<String>,
    /// Warnings that are not problems.
    pub warnings: Vec<String>,
}

impl Topology {
    /// Works the topology out. `node_addresses` are those of the Node object, if it is known.
    pub fn new(
        interfaces: &[Interface],
        node_addresses: &[IpAddr],
        topology_config: &TopologyConfig,
    ) -> Self {
        let node_addresses: Vec<IpAddr> =
            topology_config.bind_address.into_iter().chain(node_addresses.iter().copied()).collect();
        let interfaces_of_node = interfaces.iter().filter(|interface| interface.name != IPVS_INTERFACE);
        let roles = Roles::new(interfaces_of_node.clone(), &node_addresses, topology_config);
        let local_addresses: BTreeSet<IpAddr> = interfaces_of_node
            .clone()
            .flat_map(|interface| interface.addresses.iter().chain(&interface.narrow_addresses).copied())
            .collect();
        let (mut leaving, mut pods) = (Vec::new(), Vec::new());
        for interface in interfaces_of_node {
            match roles.of(interface) {
                Role::Pod => pods.push(interface),
                Role::Idle => {}
                role @ (Role::Uplink | Role::Port | Role::Overlay | Role::Further) => {
                    leaving.push((role, interface));
                }
            }
        }
        // Stable: within a role, the order is kept.
        leaving.sort_by_key(|(role, _)| match role {
            Role::Uplink => 0,
            Role::Port => 1,
            Role::Overlay => 2,
            _ => 3,
        });
        let primary = |family| {
            let of_uplinks = leaving.iter().filter(|(role, _)| *role == Role::Uplink);
            let of_uplinks = of_uplinks.flat_map(|(_, interface)| &interface.addresses);
            let mut all = node_addresses.iter().chain(of_uplinks);
            all.find(|ip| IpFamily::of(ip) == family && local_addresses.contains(ip)).copied()
        };
        let uplink = |(role, interface): &(Role, &Interface)| {
            let sources = IpFamily::ALL.into_iter().filter_map(|family| {
                let of_family = |ip: &&IpAddr| IpFamily::of(ip) == family;
                let preferred = interface.preferred_sources.iter().filter(|ip| local_addresses.contains(ip));
                // An interface without addresses replies from the node's.
                preferred.chain(&interface.addresses).find(of_family).copied().or_else(|| primary(family))
            });
            Uplink {
                index: interface.index,
                name: interface.name.clone(),
                has_link_header: interface.has_link_header,
                is_gre: matches!(interface.kind.as_str(), "gre" | "ip6gre"),
                is_virtual: !interface.kind.is_empty(),
                bridge: roles.bridge(interface),
                may_have_xdp: *role != Role::Further,
                sources: sources.collect(),
                mtu: interface.mtu,
            }
        };
        let uplinks: Vec<Uplink> = leaving.iter().map(uplink).collect();
        let pods = match topology_config.pod_datapath {
            PodDatapath::Socket => Vec::new(),
            PodDatapath::Auto | PodDatapath::Tc | PodDatapath::Both => pods
                .into_iter()
                .map(|interface| PodPort {
                    index: interface.index,
                    name: interface.name.clone(),
                    bridge: roles.bridge(interface),
                    peer_namespace: interface.peer_namespace.and_then(|id| u32::try_from(id).ok()),
                })
                .collect(),
        };
        let network_warnings =
            network_warnings(interfaces, &local_addresses, leaving.is_empty(), topology_config);
        let is_ipvs =
            |interface: &Interface| interface.name == IPVS_INTERFACE && !interface.addresses.is_empty();
        let warning = || {
            format!(
                "the interface {IPVS_INTERFACE} has addresses of Services, left by kube-proxy in IPVS mode: they do not count as the node's own. \
                 `proxy-agent migrate` shows it, and removes it when kube-proxy is gone"
            )
        };
        Self {
            uplinks,
            pods,
            // The kernel may choose any of them for an interface that has no address.
            snat_sources: interfaces
                .iter()
                .filter(|interface| interface.name != IPVS_INTERFACE)
                .flat_map(|interface| interface.addresses.iter().copied())
                .filter(|ip| !ip.is_loopback())
                .collect(),
            given_snat_sources: topology_config
                .snat_addresses
                .iter()
                .filter(|ip| local_addresses.contains(ip))
                .copied()
                .collect(),
            nodeport_addresses: nodeport_addresses(&local_addresses, &node_addresses, topology_config),
            local_addresses,
            policies: BTreeSet::new(),
            hints: BTreeMap::new(),
            encapsulates: false,
            rules: false,
            fragments: Fragments::None,
            network_warnings,
            warnings: interfaces.iter().any(is_ipvs).then(warning).into_iter().collect(),
        }
    }
}

impl Topology {
    /// Whether some packets can only be sent by the kernel's IP stack.
    pub fn needs_stack(&self) -> bool {
        self.encapsulates || !self.policies.is_empty()
    }
}

/// Configured names and addresses that do not exist.
fn network_warnings(
    interfaces: &[Interface],
    local: &BTreeSet<IpAddr>,
    has_no_uplinks: bool,
    topology_config: &TopologyConfig,
) -> Vec<String> {
    let names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    let missing = topology_config.uplinks.iter().filter(|name| !names.contains(&name.as_str()));
    let mut network_warnings: Vec<String> = missing
        .map(|name| {
            format!("interface `{name}` does not exist (--uplink); existing ones: {}", names.join(", "))
        })
        .collect();
    if let Some(ip) = topology_config.bind_address.filter(|ip| !local.contains(ip)) {
        network_warnings.push(format!("no interface has the address {ip} (--bind-address)"));
    }
    let missing = topology_config.snat_addresses.iter().filter(|ip| !local.contains(ip));
    network_warnings.extend(
        missing.map(|ip| format!("no interface has the address {ip} (--snat-address): it is not used")),
    );
    if has_no_uplinks && topology_config.uplinks.is_empty() {
        network_warnings
            .push("no interface leads off the node: only this node and its pods are served".to_owned());
    }
    network_warnings
}

/// Addresses that serve nodePorts: by default all of the node, as kube-proxy has it with iptables. A family that no CIDR is given for is not
/// restricted.
fn nodeport_addresses(
    local: &BTreeSet<IpAddr>,
    node: &[IpAddr],
    topology_config: &TopologyConfig,
) -> BTreeSet<IpAddr> {
    let wanted = &topology_config.nodeport_addresses;
    if wanted.contains(&NodePortAddresses::Primary) {
        let first = |family| node.iter().find(|ip| IpFamily::of(ip) == family).copied();
        return IpFamily::ALL.into_iter().filter_map(first).collect();
    }
    let is_wanted = |ip: &IpAddr| {
        let mut of_family = wanted
            .iter()
            .filter_map(|address| match address {
                NodePortAddresses::Within(net) => Some(net),
                NodePortAddresses::Primary => None,
            })
            .filter(|net| IpFamily::of(&net.addr()) == IpFamily::of(ip))
            .peekable();
        of_family.peek().is_none() || of_family.any(|net| net.contains(ip))
    };
    local.iter().filter(|ip| !ip.is_loopback() && is_wanted(ip)).copied().collect()
}

#[cfg(test)]
mod tests;
