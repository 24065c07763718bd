mod addresses;

use super::*;

fn interface(index: u32, name: &str, kind: &str, addresses: &[&str]) -> Interface {
    Interface {
        index,
        name: name.into(),
        kind: kind.into(),
        has_link_header: !["tun", "wireguard", "ipip"].contains(&kind),
        is_loopback: name == "lo",
        is_up: true,
        peer_namespace: (kind == "veth").then_some(0),
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

fn topology_config() -> TopologyConfig {
    TopologyConfig {
        snat_addresses: Vec::new(),
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

fn names(topology: &Topology) -> String {
    topology.uplinks.iter().map(|uplink| uplink.name.clone()).collect::<Vec<_>>().join(" ")
}

#[test]
fn uplinks_are_found_or_named() {
    let node_address = ["10.1.0.10".parse().unwrap()];
    for (node_addresses, uplinks, expected, with_xdp) in [
        (&[][..], vec![], "eth0 flannel.1 wg0 eth1", "eth0 flannel.1 wg0"),
        (&node_address[..], vec![], "eth0 eth1 flannel.1 wg0", "eth0 eth1 flannel.1 wg0"),
        (&[][..], vec!["eth1".to_owned()], "eth1 flannel.1 wg0", "eth1 flannel.1 wg0"),
    ] {
        let mut topology =
            Topology::new(&node(), node_addresses, &TopologyConfig { uplinks, ..topology_config() });
        assert_eq!(names(&topology), expected);
        assert!(topology.network_warnings.is_empty(), "{:?}", topology.network_warnings);
        topology.uplinks.retain(|uplink| uplink.may_have_xdp);
        assert_eq!(names(&topology), with_xdp);
    }
}

/// The role of each kind of interface, beside `eth0` with the default route, in `--pod-datapath tc`.
#[test]
fn every_interface_that_is_not_a_pod_s_leads_off_the_node() {
    type Change = fn(&mut Vec<Interface>);
    let cases: &[(&str, Change, &str, &str)] = &[
        ("nothing", |_| {}, "eth0", ""),
        ("without an address", |all| all.push(interface(9, "eth1", "", &[])), "eth0 eth1", ""),
        (
            "down",
            |all| all.push(Interface { is_up: false, ..interface(9, "eth1", "", &["10.1.0.10"]) }),
            "eth0",
            "",
        ),
        (
            "VLAN, macvlan, ipvlan, openvswitch",
            |all| {
                for (index, kind) in (9..).zip(["vlan", "macvlan", "ipvlan", "openvswitch"]) {
                    all.push(Interface { parent: 2, ..interface(index, kind, kind, &["10.1.0.10"]) });
                }
            },
            "eth0 vlan macvlan ipvlan openvswitch",
            "",
        ),
        (
            "a VLAN above a veth",
            |all| {
                all.push(interface(9, "eth1", "veth", &[]));
                all.push(Interface { parent: 9, ..interface(10, "eth1.5", "vlan", &["10.1.0.10"]) });
            },
            "eth0 eth1 eth1.5",
            "",
        ),
        (
            "a bond and its slaves",
            |all| {
                all.push(interface(9, "bond0", "bond", &["10.1.0.10"]));
                all.push(Interface { master: 9, ..interface(10, "eth1", "", &[]) });
                all.push(Interface { master: 9, ..interface(11, "eth2", "veth", &[]) });
            },
            "eth0 bond0",
            "",
        ),
        (
            "a VRF and its slaves",
            |all| {
                all.push(interface(9, "red", "vrf", &[]));
                all.push(Interface { master: 9, ..interface(10, "eth1", "", &["10.1.0.10"]) });
                all.push(Interface { master: 9, ..interface(11, "veth1", "veth", &[]) });
            },
            "eth0 eth1",
            "veth1",
        ),
        (
            "a pair within the node",
            |all| {
                for (index, name, ips) in [(9, "cilium_net", &[][..]), (10, "cilium_host", &["10.244.1.5"])] {
                    all.push(Interface { peer_namespace: None, ..interface(index, name, "veth", ips) });
                }
            },
            "eth0 cilium_net cilium_host",
            "",
        ),
        ("a pod's gateway", |all| all.push(interface(9, "veth1", "veth", &["10.244.1.1"])), "eth0", "veth1"),
        (
            "a network behind a veth",
            |all| {
                all.push(Interface { has_network: true, ..interface(9, "eth1", "veth", &["10.1.0.10"]) });
            },
            "eth0 eth1",
            "",
        ),
        (
            "a router behind a veth",
            |all| all.push(Interface { has_gateway: true, ..interface(9, "eth1", "veth", &[]) }),
            "eth0 eth1",
            "",
        ),
        (
            "a bridge of pods",
            |all| {
                all.push(Interface { has_network: true, ..interface(9, "cni0", "bridge", &["10.244.1.1"]) });
                all.push(Interface { master: 9, ..interface(10, "veth1", "veth", &[]) });
            },
            "eth0",
            "veth1",
        ),
        (
            "a bridge of pods and others",
            |all| {
                all.push(Interface { has_network: true, ..interface(9, "weave", "bridge", &["10.32.0.1"]) });
                all.push(Interface { master: 9, ..interface(10, "veth1", "veth", &[]) });
                let within = Interface { peer_namespace: None, ..interface(11, "vethwe", "veth", &[]) };
                all.push(Interface { master: 9, ..within });
            },
            "eth0 weave vethwe",
            "veth1",
        ),
        (
            "a bridge without an address",
            |all| {
                all.push(interface(9, "br0", "bridge", &[]));
                all.push(Interface { master: 9, ..interface(10, "eth1", "", &[]) });
            },
            "eth0",
            "",
        ),
        (
            "ports of a switch",
            |all| {
                all.push(Interface { is_up: false, ..interface(9, "ovs-system", "openvswitch", &[]) });
                all.push(Interface { master: 9, ..interface(10, "eth1", "", &[]) });
                all.push(Interface { master: 9, ..interface(11, "veth1", "veth", &[]) });
                all.push(interface(12, "antrea-gw0", "openvswitch", &["10.244.1.1"]));
            },
            "eth0 antrea-gw0",
            "veth1",
        ),
        (
            "dummies and the like",
            |all| {
                all.push(interface(9, "dummy0", "dummy", &["10.1.0.10"]));
                all.push(interface(10, "ifb0", "ifb", &[]));
            },
            "eth0",
            "",
        ),
    ];
    for (name, change, uplinks, pods) in cases {
        let mut interfaces = vec![interface(2, "eth0", "", &["192.168.1.10"])];
        interfaces[0].has_default_route = true;
        change(&mut interfaces);
        let mut topology_config = TopologyConfig { pod_datapath: PodDatapath::Tc, ..topology_config() };
        let topology = Topology::new(&interfaces, &[], &topology_config);
        assert_eq!(names(&topology), *uplinks, "{name}");
        let found: Vec<_> = topology.pods.iter().map(|pod| &*pod.name).collect();
        assert_eq!(found.join(" "), *pods, "{name}");
        let sources = ["192.168.1.10", "10.1.0.10", "10.244.1.1", "10.244.1.5", "10.32.0.1"];
        for uplink in &topology.uplinks {
            let source = uplink.sources.first().map(ToString::to_string).unwrap_or_default();
            assert!(sources.contains(&source.as_str()), "{name}: {} has {source:?}", uplink.name);
            assert_eq!(uplink.may_have_xdp, uplink.name == "eth0", "{name}: {}", uplink.name);
        }
        topology_config.uplinks = vec!["eth0".to_owned()];
        assert_eq!(names(&Topology::new(&interfaces, &[], &topology_config)), "eth0", "{name}, by --uplink");
    }
}

/// The port by which a nested node's switch leads off looks like a pod's, but for its MAC.
#[test]
fn the_node_s_address_on_a_switch() {
    let [mac, other] = [1, 2].map(|last| vec![2, 0, 0, 0, 0, last]);
    let port = |index, name, mac: &Vec<u8>| Interface {
        master: 9,
        mac: mac.clone(),
        ..interface(index, name, "veth", &[])
    };
    let internal = interface(11, "br-ex", "openvswitch", &["192.168.1.10"]);
    let interfaces = [
        port(2, "eth0", &mac),
        Interface { is_up: false, ..interface(9, "ovs-system", "openvswitch", &[]) },
        port(10, "veth1", &other),
        Interface { mac: mac.clone(), has_default_route: true, ..internal },
    ];
    let topology_config = TopologyConfig { pod_datapath: PodDatapath::Tc, ..topology_config() };
    let topology = Topology::new(&interfaces, &[], &topology_config);
    assert_eq!(names(&topology), "br-ex");
    let pods: Vec<_> = topology.pods.iter().map(|pod| &*pod.name).collect();
    assert_eq!(pods, ["veth1"]);
}

#[test]
fn a_configured_pod_interface_is_not_an_uplink() {
    let mut interfaces = node();
    interfaces.push(interface(9, "tap0", "tun", &[]));
    interfaces[7].has_link_header = true;
    let pod_interfaces = vec!["eth1".to_owned(), "tap*".to_owned()];
    let topology_config =
        TopologyConfig { pod_interfaces, pod_datapath: PodDatapath::Tc, ..topology_config() };
    let mut topology = Topology::new(&interfaces, &[], &topology_config);
    assert_eq!(names(&topology), "eth0 flannel.1 wg0");
    topology.pods.retain(|pod| pod.name != "tap0");
    assert_eq!(topology.pods.len(), 1, "{:?}", topology.pods);
}

#[test]
fn a_wrong_name_is_reported_with_the_right_ones() {
    let uplinks = vec!["eth9".to_owned(), "eth0".to_owned()];
    let topology = Topology::new(&node(), &[], &TopologyConfig { uplinks, ..topology_config() });
    assert_eq!(topology.network_warnings.len(), 1);
    assert!(topology.network_warnings[0].contains("`eth9`") && topology.network_warnings[0].contains("eth0"));
    assert_eq!(topology.uplinks[0].name, "eth0", "the rest works");
}

#[test]
fn given_source_addresses_are_used_if_they_are_there() {
    let given = ["192.0.2.77", "10.1.0.10"].map(|ip| ip.parse().unwrap());
    let topology =
        Topology::new(&node(), &[], &TopologyConfig { snat_addresses: given.to_vec(), ..topology_config() });
    assert_eq!(topology.given_snat_sources, given[1..]);
    assert!(topology.snat_sources.contains(&given[1]) && !topology.snat_sources.contains(&given[0]));
    assert_eq!(topology.network_warnings.len(), 1);
    assert!(
        topology.network_warnings[0].contains("192.0.2.77 (--snat-address)"),
        "{:?}",
        topology.network_warnings
    );
}

#[test]
fn sources_are_the_interface_s_own_or_the_node_s() {
    let topology = Topology::new(&node(), &[], &topology_config());
    let sources = |name: &str| {
        let uplink = topology.uplinks.iter().find(|uplink| uplink.name == name).unwrap();
        uplink.sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(sources("eth0"), "192.168.1.10 fd00::10");
    assert_eq!(sources("eth1"), "10.1.0.10 fd00::10");
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
        let topology = Topology::new(&interfaces, &[], &topology_config());
        let sources: Vec<_> = topology.uplinks[0].sources.iter().map(ToString::to_string).collect();
        assert_eq!(sources.join(" "), expected, "{preferred:?}");
        // All addresses that the kernel may choose, so that late replies to them are recognised.
        let all =
            ["192.168.1.10", "192.168.1.11", "fd00::10", "10.1.0.10", "10.244.1.1", "10.244.1.0", "10.9.9.9"];
        assert_eq!(topology.snat_sources, ips(&all), "{preferred:?}");
    }
}

#[test]
fn sources_of_an_overlay_without_addresses_are_those_of_its_routes() {
    let mut interfaces = node();
    interfaces[7].preferred_sources = ["192.0.2.1", "10.244.1.1"].map(|ip| ip.parse().unwrap()).to_vec();
    let topology = Topology::new(&interfaces, &[], &topology_config());
    let wireguard = topology.uplinks.iter().find(|uplink| uplink.name == "wg0").unwrap();
    // A source that the node does not have is left out; IPv6 has no such route.
    assert_eq!(wireguard.sources, ["10.244.1.1".parse::<IpAddr>().unwrap(), "fd00::10".parse().unwrap()]);
}

#[test]
fn ports_of_a_bridge_that_is_an_uplink_are_uplinks() {
    let mut interfaces = vec![
        interface(2, "eth0", "", &[]),
        interface(3, "br0", "bridge", &["192.168.1.10"]),
        interface(4, "vnet0", "tun", &[]),
        interface(5, "veth1", "veth", &[]),
        interface(6, "veth2", "veth", &[]),
    ];
    for port in [0, 2, 3] {
        interfaces[port].master = 3;
    }
    for named in [vec!["br0"], vec!["br0", "eth0"]] {
        let uplinks = named.iter().map(ToString::to_string).collect();
        let topology_config = TopologyConfig { uplinks, pod_datapath: PodDatapath::Tc, ..topology_config() };
        let topology = Topology::new(&interfaces, &[], &topology_config);
        let mut bridges: Vec<_> =
            topology.uplinks.iter().map(|uplink| (&*uplink.name, uplink.bridge)).collect();
        bridges.sort_unstable();
        assert_eq!(bridges, [("br0", 0), ("eth0", 3), ("veth1", 3), ("vnet0", 3)], "{named:?}");
        let pods: Vec<_> = topology.pods.iter().map(|pod| &*pod.name).collect();
        assert_eq!(pods, ["veth2"], "{named:?}");
        assert_eq!(topology.nodeport_addresses, ips(&["192.168.1.10"]), "{named:?}");
    }
}

#[test]
fn an_interface_below_an_uplink_is_not_a_pod() {
    let mut interfaces = vec![
        interface(2, "eth0", "veth", &[]),
        interface(3, "mac0", "macvlan", &["192.168.1.10"]),
        interface(4, "veth1", "veth", &[]),
    ];
    interfaces[1].parent = 2;
    interfaces[1].has_default_route = true;
    let topology = Topology::new(
        &interfaces,
        &[],
        &TopologyConfig { pod_datapath: PodDatapath::Tc, ..topology_config() },
    );
    let pods: Vec<_> = topology.pods.iter().map(|pod| &*pod.name).collect();
    assert_eq!(pods, ["veth1"]);
}

#[test]
fn pod_interfaces_follow_the_mode_and_the_patterns() {
    let pods = |pod_datapath, patterns: &[&str]| {
        let pod_interfaces = patterns.iter().map(ToString::to_string).collect();
        let topology = Topology::new(
            &node(),
            &[],
            &TopologyConfig { pod_datapath, pod_interfaces, ..topology_config() },
        );
        topology.pods.iter().map(|pod| (pod.name.clone(), pod.bridge)).collect::<Vec<_>>()
    };
    assert_eq!(pods(PodDatapath::Socket, &[]), []);
    assert_eq!(pods(PodDatapath::Tc, &[]), [("veth1".to_owned(), 4), ("cali1".to_owned(), 0)]);
    assert_eq!(pods(PodDatapath::Both, &["cali*"]), [("cali1".to_owned(), 0)]);
}
