//! Devices that take the tunnel's other end from the route (`ip route ... encap`): collect_md, "external".

use anyhow::Result;

use super::Shape;
use crate::{Network, ends::Ends};

const DEVICE: &str = "flow0";

pub(super) const ALL: &[Shape] = &[
    Shape::new("vxlan, routes with encapsulation", "vxlan", |network| {
        ethernet(network, "vxlan dstport 4789 external")
    })
    .common(),
    Shape::new("geneve, routes with encapsulation", "geneve", |network| ethernet(network, "geneve external")),
    Shape::new("gre, routes with encapsulation", "gre", |network| layer3(network, "gre external")),
    Shape::new("ipip, routes with encapsulation", "ipip", |network| layer3(network, "ipip external"))
        .ipv4_only(),
];

fn encapsulation(ends: Ends) -> String {
    format!("encap ip id 1 src {} dst {} ttl 64", ends.node4(), ends.peer4())
}

fn ethernet(network: &Network, kind: &str) -> Result<()> {
    network.each(|ends| {
        let (peer, encapsulation) = (ends.reversed(), encapsulation(ends));
        let mut lines = vec![format!("link add {DEVICE} address {} type {kind}", ends.mac())];
        lines.extend(ends.numbered(DEVICE));
        lines.extend(ends.neighbours(DEVICE));
        for (pods, via) in
            [(ends.pods4(), peer.tunnel4().to_string()), (ends.pods6(), peer.tunnel6().to_string())]
        {
            lines.push(format!("route replace {pods} {encapsulation} via {via} dev {DEVICE} onlink"));
        }
        lines
    })
}

fn layer3(network: &Network, kind: &str) -> Result<()> {
    let is_ipv4_only = kind.starts_with("ipip");
    network.each(|ends| {
        let mut lines = vec![format!("link add {DEVICE} type {kind}")];
        lines.extend(ends.numbered(DEVICE));
        let pods = [Some(ends.pods4()), (!is_ipv4_only).then(|| ends.pods6())];
        for pods in pods.into_iter().flatten() {
            lines.push(format!("route replace {pods} {} dev {DEVICE}", encapsulation(ends)));
        }
        lines
    })
}
