//! The two ends of a network between nodes.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::Network;
use proxy_harness::cluster::{Netns, addresses as addr};

/// A node, and the one at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) own: usize,
}

impl Ends {
    fn other(self) -> usize {
        1 - self.own
    }

    /// The other end.
    pub(super) fn reversed(self) -> Self {
        Self { own: self.other() }
    }

    /// The node's name.
    pub(super) fn name(self) -> String {
        format!("node-{}", self.own + 1)
    }

    pub(super) fn node4(self) -> Ipv4Addr {
        addr::node_v4(self.own)
    }

    pub(super) fn node6(self) -> Ipv6Addr {
        addr::node_v6(self.own)
    }

    pub(super) fn peer4(self) -> Ipv4Addr {
        addr::node_v4(self.other())
    }

    pub(super) fn peer6(self) -> Ipv6Addr {
        addr::node_v6(self.other())
    }

    /// The peer's pods.
    pub(super) fn pods4(self) -> String {
        addr::pod_cidr_v4(self.other())
    }

    /// The peer's pods.
    pub(super) fn pods6(self) -> String {
        addr::pod_cidr_v6(self.other())
    }

    /// The address of the node's own tunnel device: the first of its pods' range, as flannel and Calico do.
    pub(super) fn tunnel4(self) -> Ipv4Addr {
        addr::overlay_v4(self.own)
    }

    /// The same for IPv6, but not the first: the kernel sends no ICMP errors to that where its route has no next hop, because it would be the
    /// address of all routers there (RFC 4291 section 2.6.1, `ipv6_anycast_destination`).
    pub(super) fn tunnel6(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(addr::overlay_v6(self.own).to_bits() | 2)
    }

    /// A MAC address for the node's own tunnel device.
    pub(super) fn mac(self) -> String {
        format!("02:00:00:00:02:{:02x}", self.own + 1)
    }

    /// Lines that give a device its addresses and switch it on.
    pub(super) fn numbered(self, device: &str) -> Vec<String> {
        vec![
            format!("link set {device} up"),
            format!("addr add {}/32 dev {device}", self.tunnel4()),
            format!("addr add {}/128 dev {device} nodad", self.tunnel6()),
        ]
    }

    /// Lines for neighbours of the device that are known from the start.
    pub(super) fn neighbours(self, device: &str) -> Vec<String> {
        let (peer, mac) = (self.reversed(), self.reversed().mac());
        vec![
            format!("neigh replace {} lladdr {mac} dev {device} nud permanent", peer.tunnel4()),
            format!("neigh replace {} lladdr {mac} dev {device} nud permanent", peer.tunnel6()),
        ]
    }

    /// Routes to the peer's pods by the device, with its tunnel address as next hop.
    pub(super) fn routes_via(self, device: &str) -> Vec<String> {
        let peer = self.reversed();
        vec![
            format!("route replace {} via {} dev {device} onlink", self.pods4(), peer.tunnel4()),
            format!("route replace {} via {} dev {device} onlink", self.pods6(), peer.tunnel6()),
        ]
    }

    /// Routes to the peer's pods by a device that has but one other end.
    pub(super) fn routes_by(self, device: &str) -> Vec<String> {
        vec![
            format!("route replace {} dev {device}", self.pods4()),
            format!("route replace {} dev {device}", self.pods6()),
        ]
    }
}

impl Network {
    /// The namespace of a node.
    pub(super) fn node(&self, ends: Ends) -> &Netns {
        &self.cluster.nodes[ends.own].host.netns
    }

    /// Runs lines of `ip` on both nodes.
    pub(super) fn each(&self, lines: impl Fn(Ends) -> Vec<String>) -> Result<()> {
        both().into_iter().try_for_each(|ends| self.node(ends).ip(&lines(ends)))
    }
}

/// Both directions.
pub(super) fn both() -> [Ends; 2] {
    [Ends { own: 0 }, Ends { own: 1 }]
}
