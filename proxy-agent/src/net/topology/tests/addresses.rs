//! Which addresses are the node's, and where nodePorts are served.

use super::*;

#[test]
fn addresses_of_ipvs_are_not_the_node_s() {
    let mut interfaces = node();
    let before = Topology::new(&interfaces, &[], &topology_config());
    assert!(before.warnings.is_empty(), "{:?}", before.warnings);
    interfaces.push(interface(9, "kube-ipvs0", "dummy", &["10.96.0.1", "10.96.0.10", "192.168.1.10"]));
    let after = Topology::new(&interfaces, &[], &topology_config());
    assert_eq!(after.local_addresses, before.local_addresses);
    assert_eq!(after.nodeport_addresses, before.nodeport_addresses);
    assert_eq!(after.snat_sources, before.snat_sources);
    assert!(after.network_warnings.is_empty() && after.warnings.len() == 1, "{:?}", after.warnings);
    assert!(after.warnings[0].contains("kube-ipvs0"));
    interfaces[8].addresses.clear();
    assert!(Topology::new(&interfaces, &[], &topology_config()).warnings.is_empty(), "an empty one");
}

#[test]
fn nodeport_addresses_follow_the_flag() {
    let node_addresses = ["192.168.1.11".parse().unwrap(), "fd00::10".parse().unwrap()];
    let within = |net: &str| NodePortAddresses::Within(net.parse().unwrap());
    for (wanted, expected) in [
        (
            vec![],
            &[
                "192.168.1.10",
                "192.168.1.11",
                "10.1.0.10",
                "10.244.1.0",
                "10.244.1.1",
                "10.9.9.9",
                "fd00::10",
            ][..],
        ),
        (vec![NodePortAddresses::Primary], &["192.168.1.11", "fd00::10"]),
        (vec![within("10.1.0.0/16")], &["10.1.0.10", "fd00::10"]),
        (vec![within("192.168.1.10/32"), within("fd01::/16")], &["192.168.1.10"]),
    ] {
        let mut interfaces = node();
        // The host's own of loopback are none; a further one may be the node's primary address.
        interfaces[0].addresses = ["127.0.0.1", "10.9.9.9"].map(|ip| ip.parse().unwrap()).to_vec();
        let topology_config = TopologyConfig { nodeport_addresses: wanted.clone(), ..topology_config() };
        let topology = Topology::new(&interfaces, &node_addresses, &topology_config);
        assert_eq!(topology.nodeport_addresses, ips(expected), "{wanted:?}");
    }
}

#[test]
fn a_bind_address_is_the_primary_one_of_its_family() {
    let node_addresses = ["192.168.1.10".parse().unwrap(), "fd00::10".parse().unwrap()];
    let topology = |bind_address: &str| {
        let nodeport_addresses = vec![NodePortAddresses::Primary];
        let bind_address = Some(bind_address.parse().unwrap());
        Topology::new(
            &node(),
            &node_addresses,
            &TopologyConfig { nodeport_addresses, bind_address, ..topology_config() },
        )
    };
    let bound = topology("10.1.0.10");
    assert_eq!(bound.nodeport_addresses, ips(&["10.1.0.10", "fd00::10"]));
    assert!(bound.uplinks.iter().any(|uplink| uplink.name == "eth1"), "it names an uplink");
    let wireguard = bound.uplinks.iter().find(|uplink| uplink.name == "wg0").unwrap();
    assert_eq!(wireguard.sources, ["10.1.0.10".parse::<IpAddr>().unwrap(), "fd00::10".parse().unwrap()]);
    let elsewhere = topology("192.0.2.1");
    assert!(elsewhere.network_warnings[0].contains("192.0.2.1"), "{:?}", elsewhere.network_warnings);
}
