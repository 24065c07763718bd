//! Addresses of nodes, pods and routers. Nodes and pods are counted from 0 here; names and addresses start at 1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The router of the nodes' network.
pub const FABRIC_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 1);
/// The same.
pub const FABRIC_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 1);
/// The router's side of the nodes' second network.
pub const SECOND_FABRIC_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 98, 1);
/// The same.
pub const SECOND_FABRIC_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x98, 0, 0, 0, 0, 0, 1);
/// The client's router.
pub const OUTSIDE_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// The same.
pub const OUTSIDE_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 1);
/// The client outside.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
/// The same.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 2);
/// All pods of the cluster.
pub const CLUSTER_CIDR_V4: &str = "10.244.0.0/16";
/// The same.
pub const CLUSTER_CIDR_V6: &str = "fd00:10:244::/48";

/// A node, on the nodes' network.
pub fn node_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 99, 11 + node as u8)
}

/// The same.
pub fn node_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 0x11 + node as u16)
}

/// The node's address on its second uplink.
pub fn second_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 98, 11 + node as u8)
}

/// The node's address on its second uplink.
pub fn second_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x98, 0, 0, 0, 0, 0, 0x11 + node as u16)
}

/// The node's address on its overlay device, if that has one: the first of its pods' range.
pub fn overlay_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node as u8 + 1, 0)
}

/// The node's address on its overlay device, if that has one: the first of its pods' range.
pub fn overlay_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16 + 1, 0, 0, 0, 0)
}

/// All addresses that a node may have.
pub fn of_node(node: usize) -> [IpAddr; 8] {
    [
        node_v4(node).into(),
        node_v6(node).into(),
        second_v4(node).into(),
        second_v6(node).into(),
        overlay_v4(node).into(),
        overlay_v6(node).into(),
        pod_gateway_v4(node).into(),
        pod_gateway_v6(node).into(),
    ]
}

/// All pods of a node.
pub fn pod_cidr_v4(node: usize) -> String {
    format!("10.244.{}.0/24", node + 1)
}

/// The same.
pub fn pod_cidr_v6(node: usize) -> String {
    format!("fd00:10:244:{}::/64", node + 1)
}

/// The node's side of the pod network: its address on the pods' bridge.
pub fn pod_gateway_v4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node as u8 + 1, 1)
}

/// The node's side of the pod network: its address on the pods' bridge.
pub fn pod_gateway_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16 + 1, 0, 0, 0, 1)
}

/// A pod of a node.
pub fn pod_v4(node: usize, pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node as u8 + 1, 10 + pod as u8)
}

/// The same.
pub fn pod_v6(node: usize, pod: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16 + 1, 0, 0, 0, 10 + pod as u16)
}
