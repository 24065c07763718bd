//! From plans to tables in memory, as the agent fills the maps.

use std::{collections::HashMap, hash::Hash, net::SocketAddr};

use proxy_agent::model::{
    objects::Protocol,
    plan::{Frontend, Place, PortName, PortPlan},
};
use proxy_common::{
    decide::memory::MemoryTables,
    layout::{
        backend::{BACKEND_LOCAL, BACKEND_REMOTE, Backend},
        frontend::{FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES, FrontendKey, Target},
        id::Id,
        set::{BackendSet, SetPolicy},
    },
    packet::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP},
};
use proxy_conformance::{HOSTS, address};

use super::family::CoreFamily;

/// Ticks of the tables' clock per second.
pub(crate) const HZ: u32 = 1000;

/// Ids with the lifetime of the named objects.
#[derive(Debug)]
pub(crate) struct Ids<K> {
    known: HashMap<K, Id>,
    next: u32,
}

impl<K> Default for Ids<K> {
    fn default() -> Self {
        Self { known: HashMap::new(), next: 1 }
    }
}

impl<K: Eq + Hash> Ids<K> {
    fn of(&mut self, key: K) -> Id {
        *self.known.entry(key).or_insert_with(|| {
            self.next += 1;
            Id::new(self.next, 1)
        })
    }

    fn keep(&mut self, wanted: impl Fn(&K) -> bool) {
        self.known.retain(|key, _| wanted(key));
    }
}

/// All ids of a node.
#[derive(Debug, Default)]
pub(crate) struct NodeIds {
    services: Ids<PortName>,
    backends: Ids<(PortName, SocketAddr)>,
}

impl NodeIds {
    /// Forgets entries that no plan has any more.
    pub(crate) fn retain(&mut self, plans: &[PortPlan]) {
        let plans: HashMap<_, _> = plans.iter().map(|plan| (&plan.name, plan)).collect();
        self.services.keep(|name| plans.contains_key(name));
        self.backends
            .keep(|(name, address)| plans.get(name).is_some_and(|plan| plan.serving.contains(address)));
    }
}

/// The number of a protocol.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
        Protocol::Sctp => PROTOCOL_SCTP,
    }
}

/// Replaces the agent's entries; those of the programs stay.
pub(crate) fn fill<F: CoreFamily>(tables: &mut MemoryTables<F>, plans: &[PortPlan], ids: &mut NodeIds) {
    tables.frontends.clear();
    tables.filter.clear();
    tables.sets.clear();
    tables.backends.clear();
    tables.alive.clear();
    tables.members.clear();
    tables.affinity_timeouts.clear();
    tables.sources.clear();
    for plan in plans {
        let service = ids.services.of(plan.name.clone());
        if let Some(timeout) = plan.affinity {
            tables.affinity_timeouts.insert(service, timeout.as_secs() as u32 * HZ);
        }
        for (set_policy, endpoints, lacks_local_endpoints) in [
            (SetPolicy::ClusterIp, &plan.internal, plan.lacks_internal()),
            (SetPolicy::External, &plan.external, plan.lacks_external()),
            (SetPolicy::Cluster, &plan.cluster, false),
            (SetPolicy::Serving, &plan.serving, false),
        ] {
            let backends: Vec<_> = endpoints
                .iter()
                .filter_map(|endpoint| {
                    let id = ids.backends.of((plan.name.clone(), *endpoint));
                    let flags = match plan.places.of(endpoint) {
                        Place::Local => BACKEND_LOCAL,
                        Place::Remote => BACKEND_REMOTE,
                        Place::Unknown => 0,
                    };
                    let backend = Backend::new(F::address(endpoint.ip())?, endpoint.port().to_be(), id);
                    Some(backend.with_flags(flags))
                })
                .collect();
            tables.publish(service, set_policy, &backends);
            if lacks_local_endpoints {
                tables.sets.insert(BackendSet::index(service, set_policy), BackendSet::NO_LOCAL_ENDPOINTS);
            }
        }
        add_frontends(tables, plan, service);
        add_sources(tables, plan, service);
    }
}

fn add_frontends<F: CoreFamily>(tables: &mut MemoryTables<F>, plan: &PortPlan, service: Id) {
    let protocol = number(plan.name.protocol);
    for frontend in &plan.frontends {
        let (address, flags) = match *frontend {
            Frontend::ClusterIp(address) => (address, FRONTEND_CLUSTER_IP),
            // Comes with the cluster IP.
            Frontend::ClusterAddress(_) | Frontend::LoadBalancerAddress(_) => continue,
            Frontend::ExternalIp(address) => (address, 0),
            Frontend::LoadBalancer(address) => {
                (address, if plan.sources.is_some() { FRONTEND_SOURCE_RANGES } else { 0 })
            }
            Frontend::NodePort(port) => (SocketAddr::new(F::ip(F::UNSPECIFIED), port), 0),
        };
        if let (Some(addr), Some(target)) = (F::address(address.ip()), Target::new(service, flags)) {
            tables.add_frontend(FrontendKey::new(addr, address.port().to_be(), protocol), target);
        }
    }
}

fn add_sources<F: CoreFamily>(tables: &mut MemoryTables<F>, plan: &PortPlan, service: Id) {
    let ranges = plan.sources.iter().flatten();
    let places = HOSTS.iter().flat_map(|place| [address(place, true), address(place, false)]);
    for place in places.filter(|place| ranges.clone().any(|range| range.contains(place))) {
        tables.sources.extend(F::address(place).map(|addr| (service, addr)));
    }
}
