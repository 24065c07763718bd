//! Netfilter rules in the shape that kube-proxy 1.36 gives them, as peers to measure against.
//!
//! For either family, and only for the default settings: `nodePortAddresses` of the node, local clients by cluster CIDR, traffic
//! policy `Cluster`, no affinity. Features that such services do not use (source ranges, services without endpoints) exist as empty
//! maps and chains, because packets pass them.

mod iptables;
mod nftables;

use std::net::IpAddr;

pub use iptables::iptables;
pub use nftables::nftables;

/// The facts of a node, besides services, that its rules depend on.
#[derive(Clone, Debug)]
pub struct NodeContext {
    /// The node's address, which serves nodePorts. The rules are of its family.
    pub node: IpAddr,
    /// The node's name.
    pub node_name: String,
    /// All pods.
    pub cluster_cidr: &'static str,
    /// All cluster IPs.
    pub service_cidr: &'static str,
    /// Whether masquerade keeps source ports where it can, as without kube-proxy's `fully-random`; nftables only.
    pub keeps_ports: bool,
}

/// A Service with its endpoints.
#[derive(Clone, Debug)]
pub struct Service {
    /// In the namespace `default`.
    pub name: String,
    /// Its address.
    pub cluster_ip: IpAddr,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Its endpoints, ready ones.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Where clients connect to.
    pub port: u16,
    /// Where endpoints listen.
    pub target_port: u16,
    /// The port on every node.
    pub node_port: Option<u16>,
}

/// An endpoint of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// The name of its node.
    pub node: String,
}

/// All service ports, each with its service and a number by which its chains are named. kube-proxy takes a hash for that.
fn service_ports(services: &[Service]) -> impl Iterator<Item = (usize, &Service, &Port)> {
    let ports = services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    ports.enumerate().map(|(number, (service, port))| (number, service, port))
}

#[cfg(test)]
mod tests;
