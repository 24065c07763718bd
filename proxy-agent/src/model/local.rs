//! Frontends at addresses that this node has itself.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{
    objects::{Protocol, Service},
    plan::{Frontend, PortName, PortPlan, ServicePlan},
};

/// Leaves out of a plan the frontends that the node's own addresses hide; names the cluster IPs among them, for which another
/// program serves the Service here (NodeLocal DNSCache). A load balancer's address has ports of the node besides those of Services.
pub fn leave_to_node(plan: &mut ServicePlan, local: &BTreeSet<IpAddr>) -> Vec<(PortName, IpAddr)> {
    let mut left = Vec::new();
    for port in &mut plan.ports {
        port.frontends.retain(|frontend| match frontend {
            Frontend::ClusterIp(address) => {
                let is_local = local.contains(&address.ip());
                if is_local {
                    left.push((port.name.clone(), address.ip()));
                }
                !is_local
            }
            // The node's own packets to its own address are for its own sockets.
            Frontend::ClusterAddress(ip) | Frontend::LoadBalancerAddress(ip) => !local.contains(ip),
            _ => true,
        });
    }
    left
}

/// Whether the plan of a Service depends on whether the node has one of these addresses.
pub fn depends_on(service: &Service, addresses: &BTreeSet<IpAddr>) -> bool {
    service.cluster_ips.iter().chain(&service.load_balancer_ips).any(|ip| addresses.contains(ip))
}

/// UDP frontends of a Service that clients outside may use and that are not among those planned before; node ports at each of these
/// addresses.
pub fn coming_udp_frontends(
    service: &Service,
    planned: &[PortPlan],
    node_addresses: &BTreeSet<IpAddr>,
) -> Vec<SocketAddr> {
    let is_planned = |frontend: Frontend| planned.iter().any(|plan| plan.frontends.contains(&frontend));
    let mut coming = Vec::new();
    for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let node_port = port.node_port.filter(|port| !is_planned(Frontend::NodePort(*port)));
        coming.extend(
            node_port.iter().flat_map(|port| node_addresses.iter().map(|ip| SocketAddr::new(*ip, *port))),
        );
        let addresses = service.external_ips.iter().chain(&service.load_balancer_ips);
        coming.extend(addresses.map(|ip| SocketAddr::new(*ip, port.port)).filter(|address| {
            !is_planned(Frontend::ExternalIp(*address)) && !is_planned(Frontend::LoadBalancer(*address))
        }));
    }
    coming
}
