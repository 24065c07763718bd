//! From a Service and its slices to what this node's maps should hold.

use std::net::SocketAddr;

use super::{
    endpoints::Candidates,
    objects::{EndpointSlice, ObjectName, Service, ServicePort, TrafficPolicy},
    plan::{Frontend, IpFamily, PortName, PortPlan},
    store::Store,
};

/// Plans for every port and family of a Service, in the order of its addresses and ports.
///
/// Costs O(ports x endpoints of this Service). `node` is this node's name: it decides what is local.
pub fn plan<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &str,
) -> Vec<PortPlan> {
    let families = service.cluster_ips.iter().map(|ip| (IpFamily::of(ip), *ip));
    families
        .flat_map(|(family, ip)| service.ports.iter().map(move |port| (family, ip, port)))
        .map(|(family, ip, port)| {
            let candidates = Candidates::gather(slices.clone(), port, family, node);
            plan_port(service, port, family, frontends(port, SocketAddr::new(ip, port.port)), &candidates)
        })
        .collect()
}

/// Plans for a Service as the store knows it; none if it is gone.
pub fn plan_stored(store: &Store, name: &ObjectName, node: &str) -> Vec<PortPlan> {
    let Some(service) = store.service(name) else {
        return Vec::new();
    };
    let slices: Vec<_> = store.slices(name).collect();
    plan(service, slices.iter().copied(), node)
}

fn frontends(port: &ServicePort, cluster_ip: SocketAddr) -> Vec<Frontend> {
    let node_port = port.node_port.map(Frontend::NodePort);
    [Frontend::ClusterIp(cluster_ip)].into_iter().chain(node_port).collect()
}

fn plan_port(
    service: &Service,
    port: &ServicePort,
    family: IpFamily,
    frontends: Vec<Frontend>,
    candidates: &Candidates,
) -> PortPlan {
    let has_external = frontends.iter().any(|frontend| !matches!(frontend, Frontend::ClusterIp(_)));
    let cluster = candidates.cluster();
    let under = |policy| match policy {
        TrafficPolicy::Cluster => cluster.clone(),
        TrafficPolicy::Local => candidates.local(),
    };
    PortPlan {
        name: PortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            family,
        },
        internal: under(service.internal_policy),
        external: if has_external { under(service.external_policy) } else { cluster.clone() },
        frontends,
        serving: cluster.clone(),
        cluster,
        affinity: None,
        sources: None,
    }
}

#[cfg(test)]
mod tests;
