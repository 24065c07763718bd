//! The shapes that a cluster's network may have.

use super::addresses as addr;

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// A route per pod and a gateway answered by proxy ARP, as Calico and the point-to-point plugin do.
    Routed,
    /// Ports of a bridge `cni0`, as flannel and the bridge plugin do.
    Bridged,
}

/// How packets get to pods of other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// By plain routes to the other nodes.
    None,
    /// By a VXLAN device per node, which has an address of each family, as flannel and Calico do.
    Vxlan,
    /// By a VXLAN device without addresses: its routes name the node's side of the pod network as source.
    UnnumberedVxlan,
}

/// The device with the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeDevice {
    /// The interface `eth0`.
    Plain,
    /// A bridge `br-ext`, of which `eth0` is a port.
    Bridge,
    /// A macvlan device `mac0` above `eth0`.
    Macvlan,
}

/// The use of a second interface of the nodes, `eth1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecondUplink {
    /// There is none.
    None,
    /// Clients come by the first, everything else goes by the second: default route and pods of other nodes.
    Asymmetric,
    /// The default route is by the first. One routing table sends by the second all packets with its address or
    /// that of the node's first pod as source; another, all packets that came by the second and go to pods of other nodes.
    PolicyRouted,
}

/// Where a link of 1,300 bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Narrow {
    /// Nowhere: links have 1,500 bytes.
    Nowhere,
    /// Behind the router, on the way to the client.
    Client,
    /// Behind a router on the way to pods of other nodes.
    Nodes,
    /// The pods' own.
    Pods,
}

/// How a node masquerades pods' packets that leave the cluster: which source ports its NAT assigns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// The pod's own port where that is free.
    Plain,
    /// A random port where the pod's own is taken (`masquerade random`).
    Random,
    /// Any port from 1024 to 65535 (`masquerade fully-random`): flannel, Calico, kube-router, Antrea, ip-masq-agent.
    FullyRandom,
}

impl Masquerade {
    /// The statement in an nftables rule.
    pub(super) fn statement(self) -> &'static str {
        match self {
            Self::Plain => "masquerade",
            Self::Random => "masquerade random",
            Self::FullyRandom => "masquerade fully-random",
        }
    }
}

/// The MTU of [`Narrow`] links.
pub const NARROW_MTU: u16 = 1300;

/// A network, apart from how many are in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) pods: PodNetwork,
    pub(super) overlay: Overlay,
    pub(super) device: NodeDevice,
    pub(super) second: SecondUplink,
    pub(super) narrow: Narrow,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            pods: PodNetwork::Routed,
            overlay: Overlay::None,
            device: NodeDevice::Plain,
            second: SecondUplink::None,
            narrow: Narrow::Nowhere,
        }
    }
}

impl Shape {
    /// The name of the device with the node's address.
    pub(super) fn node_device(&self) -> &'static str {
        match self.device {
            NodeDevice::Plain => "eth0",
            NodeDevice::Bridge => "br-ext",
            NodeDevice::Macvlan => "mac0",
        }
    }

    /// The names of the interfaces that lead off the node, for `--uplink`.
    pub(super) fn uplinks(&self) -> Vec<&'static str> {
        let mut uplinks = vec![self.node_device()];
        if self.second != SecondUplink::None {
            uplinks.push("eth1");
        }
        uplinks
    }

    /// The MTU of pods' interfaces.
    pub(super) fn pod_mtu(&self) -> u16 {
        match (self.narrow, self.overlay) {
            (Narrow::Pods, _) => NARROW_MTU,
            (_, Overlay::None) => 1500,
            _ => super::overlay::MTU,
        }
    }

    /// The device and addresses, IPv4 and IPv6, by which a node reaches another's pods.
    pub(super) fn way_to_pods(&self, other: usize) -> (&'static str, String, String) {
        let (device, v4, v6) = match (self.narrow, self.second) {
            (Narrow::Nodes, _) => (self.node_device(), addr::FABRIC_V4, addr::FABRIC_V6),
            (_, SecondUplink::Asymmetric) => ("eth1", addr::second_v4(other), addr::second_v6(other)),
            _ => (self.node_device(), addr::node_v4(other), addr::node_v6(other)),
        };
        (device, v4.to_string(), v6.to_string())
    }
}
