//! Plain routes, and effects of links on packets.

use std::{net::Ipv6Addr, process::Command};

use anyhow::Result;

use super::Shape;
use crate::{
    Network,
    ends::{Ends, both},
    sctp,
};
use proxy_harness::cluster::pipe;

pub(super) const ALL: &[Shape] = &[
    Shape::new("routes (calico bgp)", "route", plain).common(),
    Shape::new("routes, IPv6 next hop", "route", ipv6_next_hop).common(),
    Shape::new("routes, 1 % loss and reordering", "netem", netem).undo(|network| tc(network, "del", &[])),
    Shape::new("routes, SCTP", "sctp", |network| {
        sctp::probe()?;
        plain(network)
    })
    .sctp(),
];

fn link_local(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x99, 0x11 + node as u16)
}

/// RFC 5549.
fn ipv6_next_hop(network: &Network) -> Result<()> {
    network.each(|Ends { own }| vec![format!("addr replace {}/64 dev eth0 nodad", link_local(own))])?;
    network.each(|ends| {
        let peer = link_local(ends.reversed().own);
        vec![
            format!("route replace {} via inet6 {peer} dev eth0", ends.pods4()),
            format!("route replace {} via {peer} dev eth0", ends.pods6()),
        ]
    })
}

/// The peer is the next hop.
pub(super) fn plain(network: &Network) -> Result<()> {
    network.each(|ends| {
        vec![
            format!("route replace {} via {}", ends.pods4(), ends.peer4()),
            format!("route replace {} via {}", ends.pods6(), ends.peer6()),
        ]
    })
}

fn netem(network: &Network) -> Result<()> {
    plain(network)?;
    tc(network, "add", &["netem", "delay", "2ms", "1ms", "reorder", "90%", "25%", "loss", "1%"])
}

/// Changes the queueing discipline of the uplinks.
fn tc(network: &Network, verb: &str, rest: &[&str]) -> Result<()> {
    both().into_iter().try_for_each(|ends| {
        let args = [&["-n", network.node(ends).name(), "qdisc", verb, "dev", "eth0", "root"], rest].concat();
        let result = pipe(Command::new("tc").args(&args), "").map(drop);
        // A route that could not be made cannot be deleted: not a failure.
        if verb == "del" { Ok(()) } else { result }
    })
}
