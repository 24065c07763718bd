//! A VXLAN overlay without a controller: neighbours and forwarding entries are written once, as flannel does.

use std::process::Command;

use anyhow::Result;

use super::{
    Netns, addresses as addr,
    netns::pipe,
    shape::{Overlay, Shape},
};

/// The rest of 1,500 bytes.
pub(super) const MTU: u16 = 1450;

/// The device.
const DEVICE: &str = "vxlan.1";

fn mac(node: usize) -> String {
    format!("02:00:00:00:01:{:02x}", node + 1)
}

/// Makes the device of a node and the routes to the pods of all others.
pub(super) fn connect(shape: &Shape, netns: &Netns, index: usize, nodes: usize) -> Result<()> {
    let mut lines = vec![
        format!(
            "link add {DEVICE} mtu {MTU} address {} type vxlan id 1 local {} dstport 8472 nolearning",
            mac(index),
            addr::node_v4(index)
        ),
        format!("link set {DEVICE} up"),
    ];
    let is_numbered = shape.overlay == Overlay::Vxlan;
    if is_numbered {
        lines.push(format!("addr add {}/32 dev {DEVICE}", addr::overlay_v4(index)));
        lines.push(format!("addr add {}/128 dev {DEVICE} nodad", addr::overlay_v6(index)));
    }
    let mut entries = String::new();
    for other in (0..nodes).filter(|other| *other != index) {
        let (v4, v6) = (addr::overlay_v4(other), addr::overlay_v6(other));
        let source = |own: String| if is_numbered { String::new() } else { format!(" src {own}") };
        lines.push(format!("neigh add {v4} lladdr {} dev {DEVICE} nud permanent", mac(other)));
        lines.push(format!("neigh add {v6} lladdr {} dev {DEVICE} nud permanent", mac(other)));
        lines.push(format!(
            "route add {} via {v4} dev {DEVICE} onlink{}",
            addr::pod_cidr_v4(other),
            source(addr::pod_gateway_v4(index).to_string())
        ));
        lines.push(format!(
            "route add {} via {v6} dev {DEVICE} onlink{}",
            addr::pod_cidr_v6(other),
            source(addr::pod_gateway_v6(index).to_string())
        ));
        entries += &format!("fdb append {} dev {DEVICE} dst {}\n", mac(other), addr::node_v4(other));
    }
    netns.ip(&lines)?;
    pipe(Command::new("bridge").args(["-n", netns.name(), "-batch", "-"]), &entries)?;
    Ok(())
}
