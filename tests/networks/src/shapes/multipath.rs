//! Two links between the nodes, both of which each route uses (ECMP).

use std::net::Ipv6Addr;

use anyhow::Result;

use super::Shape;
use crate::{
    Network, Path,
    ends::{Ends, both},
};
use proxy_harness::cluster::addresses as addr;

/// Without the node's own packets: IPv6 notes an MTU that it learns at the way of the error's addresses, which without ports is not
/// always that of the datagram.
pub(super) const ALL: &[Shape] = &[
    Shape::new("routes, ECMP", "route", by_routes).without(&[Path::Node]).undo(one_link).common(),
    Shape::new("routes, ECMP by nexthop objects", "nexthop", by_objects)
        .without(&[Path::Node])
        .undo(|network| {
            network.each(|_| vec!["nexthop flush".to_owned()])?;
            one_link(network)
        })
        .common(),
];

const SECOND: &str = "eth1";
const LINKS: [&str; 2] = ["eth0", SECOND];

/// The links: the hash of its addresses and ports selects the link of each connection. A node's address may be that of the other link, so
/// source checks are loose.
fn links(network: &Network) -> Result<()> {
    let fabric = &network.cluster.fabric;
    fabric.ip(&["link add br1 type bridge".to_owned(), "link set br1 up".to_owned()])?;
    for ends in both() {
        let (name, node) = (ends.name(), network.node(ends));
        fabric.ip(&[
            format!("link add second-{name} type veth peer name {SECOND} netns {}", node.name()),
            format!("link set second-{name} master br1 up"),
        ])?;
        node.ip(&[
            format!("link set {SECOND} up"),
            format!("addr add {}/24 dev {SECOND}", addr::second_v4(ends.own)),
            format!("addr add {}/64 dev {SECOND} nodad", addr::second_v6(ends.own)),
        ])?;
        for link in LINKS {
            node.sysctl(&[(&format!("ipv4/conf/{link}/rp_filter"), "2")])?;
        }
    }
    hash(network, "1")
}

/// The fields that select a way: 0 addresses, 1 ports, too.
fn hash(network: &Network, policy: &str) -> Result<()> {
    both().into_iter().try_for_each(|ends| {
        network
            .node(ends)
            .sysctl(&[("ipv4/fib_multipath_hash_policy", policy), ("ipv6/fib_multipath_hash_policy", policy)])
    })
}

fn one_link(network: &Network) -> Result<()> {
    both().into_iter().try_for_each(|ends| {
        network.node(ends).sysctl(&[("ipv4/conf/eth0/rp_filter", "1"), ("ipv4/nexthop_compat_mode", "1")])
    })?;
    hash(network, "0")
}

fn by_routes(network: &Network) -> Result<()> {
    links(network)?;
    network.each(|ends| {
        let peer = ends.reversed().own;
        vec![
            format!(
                "route replace {} nexthop via {} dev eth0 nexthop via {} dev {SECOND}",
                ends.pods4(),
                ends.peer4(),
                addr::second_v4(peer)
            ),
            format!(
                "route replace {} nexthop via {} dev eth0 nexthop via {} dev {SECOND}",
                ends.pods6(),
                ends.peer6(),
                addr::second_v6(peer)
            ),
        ]
    })
}

/// As FRR installs routes by default. Both families have the same next hops, which are IPv6 (RFC 5549), and routes contain
/// only the id of their next hop.
fn by_objects(network: &Network) -> Result<()> {
    links(network)?;
    for ends in both() {
        network.node(ends).sysctl(&[("ipv4/nexthop_compat_mode", "0")])?;
    }
    network.each(|Ends { own }| {
        LINKS.map(|link| format!("addr replace {}/64 dev {link} nodad", link_local(own))).to_vec()
    })?;
    network.each(|ends| {
        let peer = link_local(ends.reversed().own);
        let mut lines: Vec<_> = (1..)
            .zip(LINKS)
            .map(|(number, link)| format!("nexthop replace id {number} via {peer} dev {link}"))
            .collect();
        lines.extend([
            "nexthop replace id 3 group 1/2".to_owned(),
            format!("route replace {} nhid 3", ends.pods4()),
            format!("route replace {} nhid 3", ends.pods6()),
            // The default route, too.
            format!("nexthop replace id 4 via {} dev eth0", addr::FABRIC_V4),
            "route replace default nhid 4".to_owned(),
        ]);
        lines
    })
}

fn link_local(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x99, 0x21 + node as u16)
}
