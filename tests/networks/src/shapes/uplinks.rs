//! Devices with the node's address.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::{Shape, routes};
use crate::{
    Network, Path,
    ends::{Ends, both},
    openvswitch,
};
use proxy_harness::cluster::addresses as addr;

const DEVICE: &str = "uplink0";
/// A device for each node at the router, for its VLAN or its second link.
const AT_ROUTER: &str = "extra";

const HOST_4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 90, 11), Ipv4Addr::new(192, 168, 90, 12)];
const HOST_6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0x90, 0, 0, 0, 0, 0, 0x11), Ipv6Addr::new(0xfd00, 0x90, 0, 0, 0, 0, 0, 0x12)];

pub(super) const ALL: &[Shape] = &[
    Shape::new("uplink: bridge", "bridge", bridge).common(),
    Shape::new("uplink: macvlan", "macvlan", |network| above(network, "macvlan mode bridge")).common(),
    Shape::new("uplink: ipvlan", "ipvlan", ipvlan).undo(|network| source_check(network, "1")),
    Shape::new("uplink: VLAN", "vlan", vlan),
    Shape::new("uplink: bond", "bond", bond),
    // The node's addresses are on an internal port, as OVN-Kubernetes has them on `br-ex`, which has the MAC of the port that leads off.
    Shape::new("uplink: openvswitch (ovn-kubernetes)", "openvswitch", |network| {
        both()
            .into_iter()
            .try_for_each(|ends| openvswitch::connect_ports(network.node(ends), DEVICE, "eth0"))?;
        network.each(|ends| {
            let mac = |device| format!("link set {device} address {}", ends.mac());
            [vec![mac("eth0"), mac(DEVICE)], moved(ends)].concat()
        })
    })
    .undo(openvswitch::remove_all),
    // Sockets of the node are not in the VRF: they have no route to pods of the other node.
    Shape::new("uplink: in a VRF", "vrf", vrf).without(&[Path::Node]),
    Shape::new("node's address on lo", "lo", |network| host_address(network, "lo"))
        .at(HOST_4[0], HOST_6[0])
        .undo(remove_host_addresses)
        .common(),
    Shape::new("node's address on a dummy", "dummy", |network| {
        network.each(|_| vec![format!("link add {DEVICE} type dummy")])?;
        host_address(network, DEVICE)
    })
    .at(HOST_4[0], HOST_6[0]),
];

impl Shape {
    const fn at(mut self, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        self.node = Some((v4, v6));
        self
    }
}

/// Lines that move the node's addresses and routes from `eth0`.
fn moved(ends: Ends) -> Vec<String> {
    vec![
        format!("link set {DEVICE} up"),
        format!("addr add {}/24 dev {DEVICE}", ends.node4()),
        format!("addr add {}/64 dev {DEVICE} nodad", ends.node6()),
        format!("addr del {}/24 dev eth0", ends.node4()),
        format!("addr del {}/64 dev eth0", ends.node6()),
        format!("route replace default via {} dev {DEVICE}", addr::FABRIC_V4),
        format!("route replace default via {} dev {DEVICE}", addr::FABRIC_V6),
        format!("route replace {} via {} dev {DEVICE}", ends.pods4(), ends.peer4()),
        format!("route replace {} via {} dev {DEVICE}", ends.pods6(), ends.peer6()),
    ]
}

/// Makes the device by these lines, and moves all to it.
fn replaced(network: &Network, make: impl Fn(Ends) -> Vec<String>) -> Result<()> {
    network.each(|ends| [make(ends), moved(ends)].concat())
}

fn above(network: &Network, kind: &str) -> Result<()> {
    replaced(network, |_| vec![format!("link add link eth0 name {DEVICE} type {kind}")])
}

/// Packets for others than the device's own addresses come in by `eth0`, and leave by the device. An interface without
/// addresses accepts packets only with source checks off (`__fib_validate_source`, `no_addr`).
fn ipvlan(network: &Network) -> Result<()> {
    source_check(network, "0")?;
    above(network, "ipvlan mode l2")
}

fn source_check(network: &Network, mode: &str) -> Result<()> {
    both().into_iter().try_for_each(|ends| {
        network.node(ends).sysctl(&[("ipv4/conf/all/rp_filter", mode), ("ipv4/conf/eth0/rp_filter", mode)])
    })
}

fn bridge(network: &Network) -> Result<()> {
    replaced(network, |_| {
        vec![format!("link add {DEVICE} type bridge"), format!("link set eth0 master {DEVICE}")]
    })
}

fn vlan(network: &Network) -> Result<()> {
    for ends in both() {
        let name = ends.name();
        network.cluster.fabric.ip(&[
            format!("link add link to-{name} name {AT_ROUTER}-{name} type vlan id 7"),
            format!("link set to-{name} nomaster"),
            format!("link set {AT_ROUTER}-{name} master br0 up"),
        ])?;
    }
    above(network, "vlan id 7")
}

/// A bond of two links, one of which is active.
fn bond(network: &Network) -> Result<()> {
    network.each(|_| vec![format!("link add {DEVICE} type bond mode active-backup miimon 50")])?;
    for ends in both() {
        let (name, netns) = (ends.name(), network.node(ends).name());
        network.cluster.fabric.ip(&[
            format!("link add {AT_ROUTER}-{name} type veth peer name eth1 netns {netns}"),
            format!("link set {AT_ROUTER}-{name} master br0 up"),
        ])?;
    }
    let ports = |_| {
        let line = |port| [format!("link set {port} down"), format!("link set {port} master {DEVICE}")];
        ["eth0", "eth1"].into_iter().flat_map(line).collect::<Vec<_>>()
    };
    // Addresses leave first: IPv6 addresses go with an interface that goes down. Routes come again when it is up.
    network.each(|ends| [moved(ends), ports(ends)].concat())?;
    network.each(|ends| moved(ends).into_iter().filter(|line| line.starts_with("route")).collect())
}

/// The uplink and the pod are in it.
fn vrf(network: &Network) -> Result<()> {
    network.each(|ends| {
        let pod = &network.cluster.nodes[ends.own].pods[0];
        vec![
            format!("link add {DEVICE} type vrf table 77"),
            format!("link set {DEVICE} up"),
            format!("link set eth0 master {DEVICE}"),
            format!("link set veth-a master {DEVICE}"),
            // They go with the change of the table.
            format!("addr replace {}/64 dev eth0 nodad", ends.node6()),
            "addr replace fe80::1/64 dev veth-a nodad".to_owned(),
            format!("route replace {}/32 dev veth-a table 77", pod.v4),
            format!("route replace {}/128 dev veth-a table 77", pod.v6),
            format!("route replace default via {} dev eth0 table 77", addr::FABRIC_V4),
            format!("route replace default via {} dev eth0 table 77", addr::FABRIC_V6),
            format!("route replace {} via {} dev eth0 table 77", ends.pods4(), ends.peer4()),
            format!("route replace {} via {} dev eth0 table 77", ends.pods6(), ends.peer6()),
        ]
    })
}

/// The node's address is on a device that leads nowhere, as with BGP to the host; links have others.
fn host_address(network: &Network, device: &str) -> Result<()> {
    routes::plain(network)?;
    network.each(|Ends { own }| {
        vec![
            format!("link set {device} up"),
            format!("addr add {}/32 dev {device}", HOST_4[own]),
            format!("addr add {}/128 dev {device} nodad", HOST_6[own]),
        ]
    })?;
    for ends in both() {
        network.cluster.fabric.ip(&[
            format!("route replace {} via {}", HOST_4[ends.own], ends.node4()),
            format!("route replace {} via {}", HOST_6[ends.own], ends.node6()),
        ])?;
    }
    Ok(())
}

fn remove_host_addresses(network: &Network) -> Result<()> {
    network.each(|Ends { own }| {
        vec![format!("addr del {}/32 dev lo", HOST_4[own]), format!("addr del {}/128 dev lo", HOST_6[own])]
    })
}
