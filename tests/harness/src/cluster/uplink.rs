//! Uplinks that are devices above others, for kernels that have such.

use std::fmt;

use anyhow::{Context, Result};

use super::{Cluster, Netns, Node, addresses as addr};
use crate::kernel_capabilities::MissingCapability;

/// The kind of the nodes' uplinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// A VLAN device above `eth0`; the router's ports have the other end.
    Vlan,
    /// An active-backup bond of `eth0` and a second interface, `eth1`.
    Bond,
}

const VLAN: u16 = 7;

impl Uplink {
    /// Its name on a node: the agents' `--uplink`.
    pub fn device(self) -> &'static str {
        match self {
            Self::Vlan => "eth0.7",
            Self::Bond => "bond0",
        }
    }

    /// A [`MissingCapability`] if the kernel has no such devices.
    fn is_known(self, netns: &Netns) -> Result<()> {
        let (kind, line) = match self {
            Self::Vlan => ("vlan", format!("link add link eth0 name probe type vlan id {VLAN}")),
            Self::Bond => ("bond", "link add probe type bond".to_owned()),
        };
        netns.ip(&[line]).map_err(|error| match format!("{error:#}") {
            text if text.contains("Unknown device type") => MissingCapability::Device(kind).into(),
            _ => error,
        })?;
        netns.ip(&["link del probe".to_owned()])
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.device())
    }
}

impl Cluster {
    /// Puts another device in the place of `eth0`, on every node, with its addresses and routes. To be done before
    /// agents run.
    ///
    /// # Errors
    /// A [`MissingCapability`] if the kernel has no such devices.
    pub fn stack_uplinks(&self, uplink: Uplink) -> Result<()> {
        uplink.is_known(&self.client.netns)?;
        for node in &self.nodes {
            self.stack(node, uplink).with_context(|| format!("{uplink} on {}", node.host.name))?;
        }
        Ok(())
    }

    fn stack(&self, node: &Node, uplink: Uplink) -> Result<()> {
        let (name, netns, device) = (&node.host.name, &node.host.netns, uplink.device());
        let mut lines = Vec::new();
        match uplink {
            Uplink::Vlan => {
                self.fabric.ip(&[
                    format!("link set to-{name} nomaster"),
                    format!("link add link to-{name} name vlan-{name} type vlan id {VLAN}"),
                    format!("link set vlan-{name} master br0 up"),
                ])?;
                lines.push(format!("link add link eth0 name {device} type vlan id {VLAN}"));
            }
            Uplink::Bond => {
                self.fabric.ip(&[
                    format!("link add bond-{name} type veth peer name eth1 netns {}", netns.name()),
                    format!("link set bond-{name} master br0 up"),
                ])?;
                lines.push(format!("link add {device} type bond mode active-backup miimon 50"));
            }
        }
        // Routes go with the last of the addresses that are their source: so there are two for a moment.
        lines.push(format!("link set {device} up"));
        lines.push(format!("addr add {}/24 dev {device}", node.host.v4));
        lines.push(format!("addr add {}/64 dev {device} nodad", node.host.v6));
        lines.push("addr flush dev eth0".to_owned());
        if uplink == Uplink::Bond {
            for port in ["eth0", "eth1"] {
                lines.push(format!("link set {port} down"));
                lines.push(format!("link set {port} master {device}"));
            }
        }
        lines.push(format!("route replace default via {} dev {device}", addr::FABRIC_V4));
        lines.push(format!("route replace default via {} dev {device}", addr::FABRIC_V6));
        for other in (0..self.nodes.len()).filter(|other| Some(*other) != node.host.node) {
            let (v4, v6) = (addr::node_v4(other), addr::node_v6(other));
            lines.push(format!("route replace {} via {v4} dev {device}", addr::pod_cidr_v4(other)));
            lines.push(format!("route replace {} via {v6} dev {device}", addr::pod_cidr_v6(other)));
        }
        netns.ip(&lines)
    }
}
