//! From interfaces to what the data path needs: uplinks, pod interfaces, addresses. Pure.

use std::{collections::BTreeSet, net::IpAddr};

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
    /// All addresses that connections may be passed on from: those of [`Uplink::sources`], and those that the kernel may find
    /// for a route.
    pub snat_sources: BTreeSet<IpAddr>,
    /// Where nodePorts are served.
    pub nodeport_addresses: BTreeSet<IpAddr>,
    /// All addresses of the node, for telling its own from others'.
    pub local_addresses: BTreeSet<IpAddr>,
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
        let leaving: Vec<&Interface> = own.iter().copied().chain(overlays).collect();
        let uplinks: Vec<Uplink> = leaving.iter().copied().map(uplink).collect();
        let snat_sources = snat_sources(interfaces, &leaving, &uplinks);

        for interface in &own {
            if interface.kind == "bridge" {
                complaints.push(format!(
                    "the uplink {} is a bridge: nodePorts with a backend on this node work only if its ports are named as \
                     uplinks too",
                    interface.name
                ));
            }
        }
        let pods = match wishes.pod_datapath {
            PodDatapath::Socket => Vec::new(),
            PodDatapath::Tc | PodDatapath::Both => pods(interfaces, &uplinks, wishes),
        };
        let local_addresses: BTreeSet<IpAddr> =
            interfaces.iter().flat_map(|interface| interface.addresses.iter().copied()).collect();
        let of_uplinks: BTreeSet<IpAddr> =
            own.iter().flat_map(|interface| interface.addresses.iter().copied()).collect();
        let nodeport_addresses = nodeport_addresses(&of_uplinks, &local_addresses, &node_addresses, wishes);
        Self { uplinks, pods, snat_sources, nodeport_addresses, local_addresses, complaints }
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
    interfaces
        .iter()
        .filter(|interface| {
            let is_pod = if wishes.pod_interfaces.is_empty() {
                interface.kind == "veth"
            } else {
                wishes.pod_interfaces.iter().any(|pattern| matches(pattern, &interface.name))
            };
            is_pod && interface.has_link_header && !is_uplink(interface.index) && !is_uplink(interface.master)
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
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, kind: &str, addresses: &[&str]) -> Interface {
        Interface {
            index,
            name: name.into(),
            kind: kind.into(),
            has_link_header: !["tun", "wireguard", "ipip"].contains(&kind),
            is_loopback: name == "lo",
            is_up: true,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Interface::default()
        }
    }

    fn node() -> Vec<Interface> {
        let mut interfaces = vec![
            interface(1, "lo", "", &[]),
            interface(2, "eth0", "", &["192.168.1.10", "192.168.1.11", "fd00::10"]),
            interface(3, "eth1", "", &["10.1.0.10"]),
            interface(4, "cni0", "bridge", &["10.244.1.1"]),
            interface(5, "veth1", "veth", &[]),
            interface(6, "cali1", "veth", &[]),
            interface(7, "flannel.1", "vxlan", &["10.244.1.0"]),
            interface(8, "wg0", "wireguard", &[]),
        ];
        interfaces[1].has_default_route = true;
        interfaces[4].master = 4;
        interfaces
    }

    fn wishes() -> Wishes {
        Wishes {
            uplinks: Vec::new(),
            pod_interfaces: Vec::new(),
            pod_datapath: PodDatapath::Socket,
            nodeport_addresses: Vec::new(),
            bind_address: None,
        }
    }

    fn ips(list: &[&str]) -> BTreeSet<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn uplinks_are_found_or_named() {
        let names = |topology: &Topology| {
            topology.uplinks.iter().map(|uplink| uplink.name.clone()).collect::<Vec<_>>().join(" ")
        };
        let node_address = ["10.1.0.10".parse().unwrap()];
        for (node_addresses, uplinks, expected) in [
            (&[][..], vec![], "eth0 flannel.1 wg0"),
            (&node_address[..], vec![], "eth0 eth1 flannel.1 wg0"),
            (&[][..], vec!["eth1".to_owned()], "eth1 flannel.1 wg0"),
        ] {
            let topology = Topology::new(&node(), node_addresses, &Wishes { uplinks, ..wishes() });
            assert_eq!(names(&topology), expected);
            assert!(topology.complaints.is_empty(), "{:?}", topology.complaints);
        }
    }

    #[test]
    fn a_wrong_name_is_told_with_the_right_ones() {
        let uplinks = vec!["eth9".to_owned(), "eth0".to_owned()];
        let topology = Topology::new(&node(), &[], &Wishes { uplinks, ..wishes() });
        assert_eq!(topology.complaints.len(), 1);
        assert!(topology.complaints[0].contains("`eth9`") && topology.complaints[0].contains("eth0"));
        assert_eq!(topology.uplinks[0].name, "eth0", "the rest works");
    }

    #[test]
    fn sources_are_the_interface_s_own_or_the_node_s() {
        let topology = Topology::new(&node(), &[], &wishes());
        let sources = |name: &str| {
            let uplink = topology.uplinks.iter().find(|uplink| uplink.name == name).unwrap();
            uplink.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(sources("eth0"), "192.168.1.10 fd00::10");
        assert_eq!(sources("flannel.1"), "10.244.1.0 fd00::10");
        assert_eq!(sources("wg0"), "192.168.1.10 fd00::10");
    }

    #[test]
    fn routes_may_prefer_a_source() {
        let mut interfaces = node();
        let prefer = |sources: &[&str]| sources.iter().map(|ip| ip.parse().unwrap()).collect();
        interfaces[0].addresses = vec!["10.9.9.9".parse().unwrap()];
        for (preferred, expected) in [
            (&["192.168.1.11"][..], "192.168.1.11 fd00::10"),
            (&["10.9.9.9", "192.168.1.11"], "10.9.9.9 fd00::10"),
            // Not the node's (any more).
            (&["192.168.1.77"], "192.168.1.10 fd00::10"),
        ] {
            interfaces[1].preferred_sources = prefer(preferred);
            let topology = Topology::new(&interfaces, &[], &wishes());
            let sources: Vec<_> = topology.uplinks[0].sources.iter().map(ToString::to_string).collect();
            assert_eq!(sources.join(" "), expected, "{preferred:?}");
            // Whatever the kernel finds, late answers to it are known.
            let mut all = ips(&["192.168.1.10", "192.168.1.11", "fd00::10", "10.244.1.0"]);
            all.extend(
                preferred
                    .iter()
                    .map(|ip| ip.parse::<IpAddr>().unwrap())
                    .filter(|ip| ip.to_string() != "192.168.1.77"),
            );
            assert_eq!(topology.snat_sources, all, "{preferred:?}");
        }
    }

    #[test]
    fn ports_of_bridges_are_known_as_such() {
        let mut interfaces =
            vec![interface(2, "eth0", "", &[]), interface(3, "br0", "bridge", &["192.168.1.10"])];
        interfaces[0].master = 3;
        let wishes = Wishes { uplinks: vec!["eth0".into(), "br0".into()], ..wishes() };
        let topology = Topology::new(&interfaces, &[], &wishes);
        let bridges: Vec<_> = topology.uplinks.iter().map(|uplink| (&*uplink.name, uplink.bridge)).collect();
        assert_eq!(bridges, [("eth0", 3), ("br0", 0)]);
    }

    #[test]
    fn pod_interfaces_follow_the_mode_and_the_patterns() {
        let pods = |pod_datapath, patterns: &[&str]| {
            let pod_interfaces = patterns.iter().map(ToString::to_string).collect();
            let topology = Topology::new(&node(), &[], &Wishes { pod_datapath, pod_interfaces, ..wishes() });
            topology.pods.iter().map(|pod| (pod.name.clone(), pod.bridge)).collect::<Vec<_>>()
        };
        assert_eq!(pods(PodDatapath::Socket, &[]), []);
        assert_eq!(pods(PodDatapath::Tc, &[]), [("veth1".to_owned(), 4), ("cali1".to_owned(), 0)]);
        assert_eq!(pods(PodDatapath::Both, &["cali*"]), [("cali1".to_owned(), 0)]);
    }

    #[test]
    fn nodeport_addresses_follow_the_flag() {
        let node_addresses = ["192.168.1.11".parse().unwrap(), "fd00::10".parse().unwrap()];
        let within = |net: &str| NodePortAddresses::Within(net.parse().unwrap());
        for (wanted, expected) in [
            (vec![], &["192.168.1.10", "192.168.1.11", "fd00::10"][..]),
            (vec![NodePortAddresses::Primary], &["192.168.1.11", "fd00::10"]),
            (vec![within("10.1.0.0/16")], &["10.1.0.10", "fd00::10"]),
            (vec![within("192.168.1.10/32"), within("fd01::/16")], &["192.168.1.10"]),
        ] {
            let topology = Topology::new(
                &node(),
                &node_addresses,
                &Wishes { nodeport_addresses: wanted.clone(), ..wishes() },
            );
            assert_eq!(topology.nodeport_addresses, ips(expected), "{wanted:?}");
        }
    }

    #[test]
    fn a_bind_address_is_the_primary_one_of_its_family() {
        let node_addresses = ["192.168.1.10".parse().unwrap(), "fd00::10".parse().unwrap()];
        let topology = |bind_address: &str| {
            let nodeport_addresses = vec![NodePortAddresses::Primary];
            let bind_address = Some(bind_address.parse().unwrap());
            Topology::new(&node(), &node_addresses, &Wishes { nodeport_addresses, bind_address, ..wishes() })
        };
        let bound = topology("10.1.0.10");
        assert_eq!(bound.nodeport_addresses, ips(&["10.1.0.10", "fd00::10"]));
        assert!(bound.uplinks.iter().any(|uplink| uplink.name == "eth1"), "it names an uplink");
        let wireguard = bound.uplinks.iter().find(|uplink| uplink.name == "wg0").unwrap();
        assert_eq!(wireguard.sources, ["10.1.0.10".parse::<IpAddr>().unwrap(), "fd00::10".parse().unwrap()]);
        let elsewhere = topology("192.0.2.1");
        assert!(elsewhere.complaints[0].contains("192.0.2.1"), "{:?}", elsewhere.complaints);
    }
}
