//! Encryption by policies (xfrm), with keys that both nodes know from the start.

use anyhow::Result;

use super::{Shape, routes, tunnels};
use crate::{Network, ends::Ends};

/// A key for this test only.
const KEY: &str = "0x000102030405060708090a0b0c0d0e0f10111213";

pub(super) const ALL: &[Shape] = &[
    Shape::new("vxlan in ESP transport", "esp", transport).undo(flush),
    Shape::new("routes, ESP tunnel", "esp", tunnel).ipv4_only().undo(flush),
];

fn states(ends: Ends, mode: &str) -> Vec<String> {
    let (own, peer) = (ends.node4(), ends.peer4());
    let state = |from, to, spi: usize| {
        format!(
            "xfrm state add src {from} dst {to} proto esp spi {spi:#x} reqid 1 mode {mode} \
             aead rfc4106(gcm(aes)) {KEY} 128"
        )
    };
    vec![state(own, peer, 0x1000 + ends.own), state(peer, own, 0x1000 + ends.reversed().own)]
}

/// The tunnel's packets are encrypted, not the pods'.
fn transport(network: &Network) -> Result<()> {
    network.each(|ends| {
        let (own, peer) = (ends.node4(), ends.peer4());
        let rest = "tmpl proto esp reqid 1 mode transport";
        let mut lines = states(ends, "transport");
        lines.push(format!("xfrm policy add src {own} dst {peer} proto 17 dport 8472 dir out {rest}"));
        lines.push(format!("xfrm policy add src {peer} dst {own} proto 17 dport 8472 dir in {rest}"));
        lines
    })?;
    tunnels::vxlan(network)
}

/// Packets to the other node's pods, and from pods to the other node, are encrypted, and must come encrypted.
fn tunnel(network: &Network) -> Result<()> {
    routes::plain(network)?;
    network.each(|ends| {
        let (own, peer) = (ends.node4(), ends.peer4());
        let mut lines = states(ends, "tunnel");
        for (from, to) in selectors(ends) {
            lines.push(format!(
                "xfrm policy add src {from} dst {to} dir out tmpl src {own} dst {peer} proto esp reqid 1 mode tunnel"
            ));
        }
        for (from, to) in selectors(ends.reversed()) {
            for direction in ["in", "fwd"] {
                lines.push(format!(
                    "xfrm policy add src {from} dst {to} dir {direction} \
                     tmpl src {peer} dst {own} proto esp reqid 1 mode tunnel"
                ));
            }
        }
        lines
    })
}

/// The encrypted packets that leave a node: sources and destinations.
fn selectors(ends: Ends) -> [(String, String); 3] {
    let (node, pods) = (format!("{}/32", ends.node4()), ends.reversed().pods4());
    let (peer, peer_pods) = (format!("{}/32", ends.peer4()), ends.pods4());
    [(pods.clone(), peer_pods.clone()), (node, peer_pods), (pods, peer)]
}

fn flush(network: &Network) -> Result<()> {
    network.each(|_| vec!["xfrm policy flush".to_owned(), "xfrm state flush".to_owned()])
}
