//! Tunnel devices: to one other end, or to the next hop of the route (non-broadcast multiple access).

use std::{net::Ipv6Addr, process::Command};

use anyhow::{Context, Result};

use super::Shape;
use crate::{
    Network,
    ends::{Ends, both},
    sctp,
};
use proxy_harness::cluster::pipe;

const DEVICE: &str = "tunnel0";

pub(super) const ALL: &[Shape] = &[
    Shape::new("ipip, NBMA (calico ipip)", "ipip", |network| by_underlay(network, "ipip")).ipv4_only(),
    Shape::new("ipip, remote", "ipip", |network| point_to_point(network, "ipip")).ipv4_only(),
    Shape::new("sit, NBMA", "sit", |network| by_underlay(network, "sit")).ipv6_only(),
    Shape::new("sit, remote", "sit", |network| point_to_point(network, "sit")).ipv6_only(),
    Shape::new("gre, NBMA", "gre", gre_nbma),
    Shape::new("gre, remote", "gre", |network| point_to_point(network, "gre")),
    Shape::new("gretap, remote", "gretap", |network| ethernet(network, "gretap")),
    Shape::new("ip6tnl, NBMA", "ip6tnl", ip6tnl_nbma).ipv6_only().undo(remove_underlay),
    Shape::new("ip6tnl, remote", "ip6tnl", ip6tnl),
    Shape::new("ip6gre, remote", "ip6gre", ip6gre),
    Shape::new("vxlan, static entries (calico vxlan)", "vxlan", vxlan).common(),
    // The tunnel's device has no offload of SCTP's checksum: the kernel makes it in front.
    Shape::new("vxlan, SCTP", "sctp", |network| {
        sctp::probe()?;
        vxlan(network)
    })
    .sctp(),
    Shape::new("geneve, remote", "geneve", |network| ethernet(network, "geneve id 1")),
    Shape::new("wireguard", "wireguard", wireguard),
];

/// The next hop is the peer's address on the underlay: Calico's IP in IP.
fn by_underlay(network: &Network, kind: &str) -> Result<()> {
    network.each(|ends| {
        let mut lines = vec![format!("link add {DEVICE} type {kind} local {}", ends.node4())];
        lines.extend(numbered_for(kind, ends));
        let (v4, v6) = (ends.peer4(), ends.peer4().to_ipv6_compatible());
        lines.push(match kind {
            "ipip" => format!("route replace {} via {v4} dev {DEVICE} onlink", ends.pods4()),
            _ => format!("route replace {} via {v6} dev {DEVICE} onlink", ends.pods6()),
        });
        lines
    })
}

/// Neighbours have the peer's address on the underlay as their link-layer address: NHRP.
fn gre_nbma(network: &Network) -> Result<()> {
    network.each(|ends| {
        let (peer, underlay) = (ends.reversed(), ends.peer4());
        let mut lines = vec![format!("link add {DEVICE} type gre local {}", ends.node4())];
        lines.extend(ends.numbered(DEVICE));
        for address in [peer.tunnel4().to_string(), peer.tunnel6().to_string()] {
            lines.push(format!("neigh replace {address} lladdr {underlay} dev {DEVICE} nud permanent"));
        }
        lines.extend(ends.routes_via(DEVICE));
        lines
    })
}

/// sit carries IPv6 only, and ipip IPv4.
fn numbered_for(kind: &str, ends: Ends) -> Vec<String> {
    let mut lines = ends.numbered(DEVICE);
    match kind {
        "ipip" => drop(lines.remove(2)),
        "sit" => drop(lines.remove(1)),
        _ => {}
    }
    lines
}

fn point_to_point(network: &Network, kind: &str) -> Result<()> {
    network.each(|ends| {
        let mut lines =
            vec![format!("link add {DEVICE} type {kind} local {} remote {}", ends.node4(), ends.peer4())];
        lines.extend(numbered_for(kind, ends));
        let mut routes = ends.routes_by(DEVICE);
        match kind {
            "ipip" => drop(routes.remove(1)),
            "sit" => drop(routes.remove(0)),
            _ => {}
        }
        lines.extend(routes);
        lines
    })
}

fn ethernet(network: &Network, kind: &str) -> Result<()> {
    network.each(|ends| {
        let local = if kind == "gretap" { format!("local {} ", ends.node4()) } else { String::new() };
        let mut lines = vec![format!("link add {DEVICE} type {kind} {local}remote {}", ends.peer4())];
        lines.extend(ends.numbered(DEVICE));
        lines.extend(ends.routes_via(DEVICE));
        lines
    })
}

fn ip6tnl(network: &Network) -> Result<()> {
    network.each(|ends| {
        let (own, peer) = (ends.node6(), ends.peer6());
        let mut lines = vec![format!("link add {DEVICE} type ip6tnl mode any local {own} remote {peer}")];
        lines.extend(ends.numbered(DEVICE));
        lines.extend(ends.routes_by(DEVICE));
        lines
    })
}

/// The other end of the tunnel on the underlay. Not one of the link's own addresses: the kernel takes no next hop by the tunnel's device
/// that it would reach by another one without the default route (`ip6_route_check_nh_onlink`).
fn underlay(ends: Ends) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x91, 0, 0, 0, 0, 0, 0x11 + ends.own as u16)
}

fn ip6tnl_nbma(network: &Network) -> Result<()> {
    for ends in both() {
        let route = format!("route replace {} via {}", underlay(ends), ends.node6());
        network.cluster.fabric.ip(&[route])?;
    }
    network.each(|ends| {
        let (own, peer) = (underlay(ends), underlay(ends.reversed()));
        let mut lines = vec![
            format!("addr add {own}/128 dev lo nodad"),
            format!("link add {DEVICE} type ip6tnl mode any local {own}"),
        ];
        lines.extend(ends.numbered(DEVICE));
        lines.push(format!("route replace {} via {peer} dev {DEVICE} onlink", ends.pods6()));
        lines
    })
}

fn remove_underlay(network: &Network) -> Result<()> {
    network.each(|ends| vec![format!("addr del {}/128 dev lo", underlay(ends))])
}

fn ip6gre(network: &Network) -> Result<()> {
    network.each(|ends| {
        let (own, peer) = (ends.node6(), ends.peer6());
        let mut lines = vec![format!("link add {DEVICE} type ip6gre local {own} remote {peer}")];
        lines.extend(ends.numbered(DEVICE));
        lines.extend(ends.routes_by(DEVICE));
        lines
    })
}

/// Forwarding entries and neighbours are written once: flannel's and Calico's VXLAN.
pub(super) fn vxlan(network: &Network) -> Result<()> {
    network.each(|ends| {
        let (mac, own) = (ends.mac(), ends.node4());
        let mut lines = vec![format!(
            "link add {DEVICE} address {mac} type vxlan id 1 local {own} dstport 8472 nolearning"
        )];
        lines.extend(ends.numbered(DEVICE));
        lines.extend(ends.neighbours(DEVICE));
        lines.extend(ends.routes_via(DEVICE));
        lines
    })?;
    both().into_iter().try_for_each(|ends| {
        let entry = format!("fdb append {} dev {DEVICE} dst {}\n", ends.reversed().mac(), ends.peer4());
        let mut bridge = Command::new("bridge");
        bridge.args(["-n", network.node(ends).name(), "-batch", "-"]);
        pipe(&mut bridge, &entry).map(drop)
    })
}

/// Keys are made for the occasion.
fn wireguard(network: &Network) -> Result<()> {
    network.each(|ends| {
        let mut lines = vec![format!("link add {DEVICE} type wireguard")];
        lines.extend(ends.numbered(DEVICE));
        lines.extend(ends.routes_by(DEVICE));
        lines
    })?;
    let mut keys = Vec::new();
    for _ in both() {
        let private = pipe(Command::new("wg").arg("genkey"), "")?;
        let public = pipe(Command::new("wg").arg("pubkey"), &private)?;
        keys.push((private, public));
    }
    both().into_iter().try_for_each(|ends| {
        let (private, public) = (&keys[ends.own].0, &keys[ends.reversed().own].1);
        let configuration = format!(
            "[Interface]\nListenPort = 51820\nPrivateKey = {private}\n[Peer]\nPublicKey = {public}\n\
             AllowedIPs = {}, {}\nEndpoint = {}:51820\n",
            ends.pods4(),
            ends.pods6(),
            ends.peer4()
        );
        let netns = network.node(ends);
        netns.feed("wg", &["setconf", DEVICE, "/proc/self/fd/0"], &configuration).context("wg setconf")?;
        Ok(())
    })
}
