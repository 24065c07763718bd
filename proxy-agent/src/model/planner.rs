//! From a Service and its slices to the wanted contents of this node's maps.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    endpoints::Candidates,
    objects::{EndpointSlice, ObjectName, Service, ServicePort, TrafficPolicy},
    plan::{Endpoints, Frontend, HealthCheck, IpFamily, PortName, PortPlan, ServicePlan},
    store::Store,
};

/// The facts of this node that plans depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeContext<'a> {
    /// Its name: decides which endpoints are local.
    pub node: &'a str,
    /// Its zone, if it has one.
    pub zone: Option<&'a str>,
    /// The addresses of its Node object; the first of a family is the primary one.
    pub addresses: &'a [IpAddr],
}

impl<'a> NodeContext<'a> {
    /// The node of this name, as far as the store knows it.
    pub fn new(node: &'a str, store: &'a Store) -> Self {
        match store.node() {
            Some(known) => Self { node, zone: known.zone.as_deref(), addresses: &known.addresses },
            None => Self { node, ..Self::default() },
        }
    }

    fn primary(&self, family: IpFamily) -> Option<IpAddr> {
        self.addresses.iter().find(|address| IpFamily::of(address) == family).copied()
    }
}

/// Plans for every port and family of a Service, in the order of its addresses and ports.
///
/// Costs O(ports x endpoints of this Service x log of them).
pub fn plan<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node_context: NodeContext<'a>,
) -> ServicePlan {
    let mut ports = Vec::with_capacity(service.cluster_ips.len() * service.ports.len());
    let mut ready_here = BTreeSet::new();
    for ip in &service.cluster_ips {
        let family = IpFamily::of(ip);
        let sources = sources(service, family, node_context);
        for port in &service.ports {
            let candidates = Candidates::gather(slices.clone(), port, family, node_context);
            ready_here.extend(candidates.ready_here());
            let mut plan = plan_port(service, port, *ip, &candidates);
            plan.sources.clone_from(&sources);
            ports.push(plan);
        }
    }
    let health_check = service
        .health_check_node_port
        .filter(|_| !ports.is_empty())
        .map(|port| HealthCheck { port, local_endpoints: ready_here.len() });
    ServicePlan { ports, health_check }
}

/// Plans for a Service as the store knows it; without ports if it is gone. `node` is this node's name.
pub fn plan_stored(store: &Store, name: &ObjectName, node: &str) -> ServicePlan {
    let Some(service) = store.service(name) else {
        return ServicePlan::default();
    };
    let slices: Vec<_> = store.slices(name).chain(store.departed(name)).collect();
    plan(service, slices.iter().copied(), NodeContext::new(node, store))
}

fn plan_port(service: &Service, port: &ServicePort, ip: IpAddr, candidates: &Candidates<'_>) -> PortPlan {
    let frontends = frontends(service, port, ip);
    let has_external = frontends
        .iter()
        .any(|frontend| !matches!(frontend, Frontend::ClusterIp(_) | Frontend::ClusterAddress(_)));
    let cluster = Endpoints::from(candidates.cluster());
    let under = |policy| match policy {
        TrafficPolicy::Cluster => Arc::clone(&cluster),
        TrafficPolicy::Local => shared(candidates.local(), &[&cluster]),
    };
    let internal = under(service.internal_policy);
    let external = if has_external { under(service.external_policy) } else { cluster.clone() };

    let mut serving = candidates.serving();
    serving.extend([&internal, &external, &cluster].into_iter().flat_map(|list| list.iter()));
    // Merging needs sorted input.
    serving.sort();
    serving.dedup();
    let serving = shared(serving, &[&cluster, &internal, &external]);
    PortPlan {
        name: PortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            family: IpFamily::of(&ip),
        },
        frontends,
        internal,
        external,
        cluster,
        serving,
        places: candidates.places(),
        affinity: service.affinity,
        sources: None,
    }
}

/// One of the known lists, if it is equal.
fn shared(list: Vec<SocketAddr>, known: &[&Endpoints]) -> Endpoints {
    let equal = known.iter().find(|known| known[..] == list[..]);
    equal.map_or_else(|| list.into(), |known| Arc::clone(known))
}

/// All frontends of a port in the family of its cluster IP. An address that the Service has in several roles has one
/// frontend: source ranges stay effective for one that is an external IP as well.
fn frontends(service: &Service, port: &ServicePort, cluster_ip: IpAddr) -> Vec<Frontend> {
    let mut all = vec![
        Frontend::ClusterIp(SocketAddr::new(cluster_ip, port.port)),
        Frontend::ClusterAddress(cluster_ip),
    ];
    let mut taken = vec![cluster_ip];
    let mut add = |ips: &[IpAddr], frontend: fn(SocketAddr) -> Frontend| {
        for ip in ips.iter().filter(|ip| ip.is_ipv4() == cluster_ip.is_ipv4()) {
            if !taken.contains(ip) {
                taken.push(*ip);
                all.push(frontend(SocketAddr::new(*ip, port.port)));
            }
        }
    };
    add(&service.load_balancer_ips, Frontend::LoadBalancer);
    add(&service.external_ips, Frontend::ExternalIp);
    let balancers: Vec<Frontend> = all
        .iter()
        .filter_map(|frontend| match frontend {
            Frontend::LoadBalancer(address) => Some(Frontend::LoadBalancerAddress(address.ip())),
            _ => None,
        })
        .collect();
    all.extend(balancers);
    all.extend(port.node_port.map(Frontend::NodePort));
    all
}

/// Clients that may use the load balancer's addresses of a family; `None`: everyone. Ranges of the other family
/// alone do not restrict this one, and neither does one that holds every address.
///
/// A node that is let in also reaches the addresses from themselves: load balancers may have put them on its loopback.
fn sources(service: &Service, family: IpFamily, node_context: NodeContext<'_>) -> Option<Vec<IpNet>> {
    let given = service.source_ranges.as_ref()?;
    let is_ours = |net: &IpNet| IpFamily::of(&net.addr()) == family;
    let mut ranges: Vec<IpNet> = given.iter().filter(|net| is_ours(net)).copied().collect();
    let unrestricted =
        ranges.is_empty() && !given.is_empty() || ranges.iter().any(|net| net.prefix_len() == 0);
    if unrestricted {
        return None;
    }
    if node_context.primary(family).is_some_and(|primary| ranges.iter().any(|net| net.contains(&primary))) {
        let own = service.load_balancer_ips.iter().copied().map(IpNet::from);
        ranges.extend(own.filter(is_ours));
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges)
}

#[cfg(test)]
mod tests;
