//! From interfaces to what the data path needs: uplinks, pod interfaces, addresses. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::interfaces::Interface;
use crate::{
    cli::{NodePortAddresses, PodDatapath},
    model::plan::IpFamily,
};

/// What the command line says about interfaces.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// `--uplink`.
    pub uplinks: Vec<String>,
    /// `--pod-interface`.
    pub pod_interfaces: Vec<String>,
    /// `--pod-datapath`.
    pub pod_datapath: PodDatapath,
    /// `--nodeport-addresses`.
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// `--bind-address`: the node's primary address of that family, whatever the Node object says.
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
    /// Made of software: native XDP there loses frames or is not there.
    pub is_virtual: bool,
    /// Index of the bridge it is a port of, or 0.
    pub bridge: u32,
    /// Source addresses for connections passed on by it, one per family at most.
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
}

/// What the data path needs to know of the node's network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Interfaces to the world, overlays included.
    pub uplinks: Vec<Uplink>,
    /// Interfaces of pods, if packets are to be translated there.
    pub pods: Vec<PodPort>,
    /// All addresses that connections to remote endpoints may have as source: those that were given, those of [`Uplink::sources`],
    /// and those that the kernel may find for a route.
    pub snat_sources: BTreeSet<IpAddr>,
    /// Those of `--snat-address` that are there.
    pub given_snat_sources: Vec<IpAddr>,
    /// Where nodePorts are served.
    pub nodeport_addresses: BTreeSet<IpAddr>,
    /// All addresses of the node, for telling its own from others'.
    pub local_addresses: BTreeSet<IpAddr>,
    /// Destinations of IPsec policies: what is for them the stack must send. Not worked out here.
    pub policies: BTreeSet<IpNet>,
    /// The stack cuts IPv4 packets that are longer than their way. Not worked out here.
    pub fragments: bool,
    /// What was asked for and is not there, in words.
    pub complaints: Vec<String>,
}

/// Kinds of interface whose packets go to other nodes in packets of another interface.
const OVERLAYS: [&str; 9] = ["vxlan", "geneve", "ipip", "sit", "gre", "ip6gre", "ip6tnl", "wireguard", "tun"];

impl Topology {
    /// Works the topology out. `node_addresses` are those of the Node object, if it is known.
    pub fn new(interfaces: &[Interface], node_addresses: &[IpAddr], wishes: &Wishes) -> Self {
        let mut complaints = Vec::new();
        let node_addresses: Vec<IpAddr> =
            wishes.bind_address.into_iter().chain(node_addresses.iter().copied()).collect();
        let is_uplink = |interface: &&Interface| {
            !interface.is_loopback
                && if wishes.uplinks.is_empty() {
                    interface.has_default_route
                        || interface.addresses.iter().any(|ip| node_addresses.contains(ip))
                } else {
                    wishes.uplinks.contains(&interface.name)
                }
        };
        let is_overlay = |interface: &&Interface| OVERLAYS.contains(&interface.kind.as_str());
        for name in &wishes.uplinks {
            if !interfaces.iter().any(|interface| interface.name == *name) {
                let known: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
                complaints.push(format!(
                    "there is no interface `{name}` (--uplink); there are: {}",
                    known.join(", ")
                ));
            }
        }
        let own: Vec<&Interface> = interfaces.iter().filter(is_uplink).collect();
        if let Some(ip) = wishes.bind_address.filter(|ip| !is_local(interfaces, ip)) {
            complaints.push(format!("no interface has the address {ip} (--bind-address)"));
        }
        let (given_snat_sources, missing): (Vec<IpAddr>, Vec<IpAddr>) =
            wishes.snat_addresses.iter().partition(|ip| is_local(interfaces, ip));
        complaints.extend(
            missing
                .iter()
                .map(|ip| format!("no interface has the address {ip} (--snat-address): it is not used")),
        );
        if own.is_empty() && wishes.uplinks.is_empty() {
            complaints.push(
                "no interface has a default route or the node's address: name one with --uplink".to_owned(),
            );
        }
        let primary = |family| {
            let of_uplinks = own.iter().flat_map(|interface| &interface.addresses);
            node_addresses
                .iter()
                .chain(of_uplinks)
                .find(|ip| IpFamily::of(ip) == family && is_local(interfaces, ip))
                .copied()
        };
        let uplink = |interface: &Interface| {
            let sources = [IpFamily::V4, IpFamily::V6].into_iter().filter_map(|family| {
                let of_family = |ip: &&IpAddr| IpFamily::of(ip) == family;
                let preferred = interface.preferred_sources.iter().filter(|ip| is_local(interfaces, ip));
                // An overlay without an address of its own answers to the node's.
                preferred.chain(&interface.addresses).find(of_family).copied().or_else(|| primary(family))
            });
            Uplink {
                index: interface.index,
                name: interface.name.clone(),
                has_link_header: interface.has_link_header,
                is_virtual: !interface.kind.is_empty(),
                bridge: bridge(interfaces, interface.master),
                sources: sources.collect(),
                mtu: interface.mtu,
            }
        };
        let overlays = interfaces.iter().filter(|interface| is_overlay(interface) && !is_uplink(interface));
        // What enters by a port of a bridge may have met the host's conntrack before it is seen on the bridge.
        let is_port = |interface: &&Interface| {
            own.iter().any(|uplink| uplink.kind == "bridge" && uplink.index == interface.master)
        };
        let ports = interfaces
            .iter()
            .filter(|interface| is_port(interface) && !is_uplink(interface) && !is_overlay(interface));
        let leaving: Vec<&Interface> = own.iter().copied().chain(ports).chain(overlays).collect();
        let uplinks: Vec<Uplink> = leaving.iter().copied().map(uplink).collect();
        let mut snat_sources = snat_sources(interfaces, &leaving, &uplinks);
        snat_sources.extend(&given_snat_sources);

        let pods = match wishes.pod_datapath {
            PodDatapath::Socket => Vec::new(),
            PodDatapath::Tc | PodDatapath::Both => pods(interfaces, &uplinks, wishes),
        };
        let local_addresses: BTreeSet<IpAddr> =
            interfaces.iter().flat_map(|interface| interface.addresses.iter().copied()).collect();
        let of_uplinks: BTreeSet<IpAddr> =
            own.iter().flat_map(|interface| interface.addresses.iter().copied()).collect();
        let nodeport_addresses = nodeport_addresses(&of_uplinks, &local_addresses, &node_addresses, wishes);
        Self {
            uplinks,
            pods,
            snat_sources,
            given_snat_sources,
            nodeport_addresses,
            local_addresses,
            policies: BTreeSet::new(),
            fragments: false,
            complaints,
        }
    }
}

fn snat_sources(interfaces: &[Interface], leaving: &[&Interface], uplinks: &[Uplink]) -> BTreeSet<IpAddr> {
    let of_routes = leaving.iter().flat_map(|interface| &interface.preferred_sources);
    let of_routes = of_routes.filter(|ip| is_local(interfaces, ip));
    let of_interfaces = leaving.iter().flat_map(|interface| &interface.addresses);
    let of_uplinks = uplinks.iter().flat_map(|uplink| &uplink.sources);
    of_routes.chain(of_interfaces).chain(of_uplinks).copied().collect()
}

fn is_local(interfaces: &[Interface], ip: &IpAddr) -> bool {
    interfaces.iter().any(|interface| interface.addresses.contains(ip))
}

/// The index of a master that is a bridge, or 0.
fn bridge(interfaces: &[Interface], master: u32) -> u32 {
    let is_bridge =
        interfaces.iter().any(|interface| interface.index == master && interface.kind == "bridge");
    if is_bridge { master } else { 0 }
}

fn pods(interfaces: &[Interface], uplinks: &[Uplink], wishes: &Wishes) -> Vec<PodPort> {
    let is_uplink = |index: u32| uplinks.iter().any(|uplink| uplink.index == index);
    // An uplink's frames pass what it stands above, too.
    let carries_uplink = |index: u32| {
        let mut above = interfaces.iter().filter(|interface| interface.parent == index);
        above.any(|interface| is_uplink(interface.index) && !OVERLAYS.contains(&interface.kind.as_str()))
    };
    interfaces
        .iter()
        .filter(|interface| {
            let is_pod = if wishes.pod_interfaces.is_empty() {
                interface.kind == "veth"
            } else {
                wishes.pod_interfaces.iter().any(|pattern| matches(pattern, &interface.name))
            };
            let is_outside =
                is_uplink(interface.index) || is_uplink(interface.master) || carries_uplink(interface.index);
            is_pod && interface.has_link_header && !is_outside
        })
        .map(|interface| PodPort {
            index: interface.index,
            name: interface.name.clone(),
            bridge: bridge(interfaces, interface.master),
        })
        .collect()
}

/// A name, or the beginning of one followed by `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Addresses that serve nodePorts. As kube-proxy has it, a family that no CIDR is given for is not restricted.
fn nodeport_addresses(
    of_uplinks: &BTreeSet<IpAddr>,
    local: &BTreeSet<IpAddr>,
    node: &[IpAddr],
    wishes: &Wishes,
) -> BTreeSet<IpAddr> {
    let wanted = &wishes.nodeport_addresses;
    if wanted.contains(&NodePortAddresses::Primary) {
        let first = |family| node.iter().find(|ip| IpFamily::of(ip) == family).copied();
        return [IpFamily::V4, IpFamily::V6].into_iter().filter_map(first).collect();
    }
    let is_wanted = |ip: &IpAddr| {
        let mut of_family = wanted
            .iter()
            .filter_map(|wish| match wish {
                NodePortAddresses::Within(net) => Some(net),
                NodePortAddresses::Primary => None,
            })
            .filter(|net| IpFamily::of(&net.addr()) == IpFamily::of(ip))
            .peekable();
        if of_family.peek().is_none() {
            of_uplinks.contains(ip)
        } else {
            of_family.any(|net| net.contains(ip))
        }
    };
    local.iter().filter(|ip| !ip.is_loopback() && is_wanted(ip)).copied().collect()
}

#[cfg(test)]
mod tests;
