//! Which endpoints of a Service port get new connections.
//!
//! Follows kube-proxy's `CategorizeEndpoints` (KEP-1669 for terminating endpoints, KEP-2086 for
//! `internalTrafficPolicy`).

use std::net::{IpAddr, SocketAddr};

use super::{
    objects::{Endpoint, EndpointSlice, ServicePort},
    plan::{Endpoints, IpFamily, Places},
    planner::NodeContext,
    topology::Topology,
};

/// The endpoints of one Service port and family, and the facts that decide about them.
#[derive(Debug)]
pub(super) struct Candidates<'a> {
    /// Sorted by address, of which each comes once.
    pub(super) found: Vec<(SocketAddr, &'a Endpoint)>,
    node_context: NodeContext<'a>,
}

impl<'a> Candidates<'a> {
    /// Gathers them from all slices of the Service. Slices may give one port name different numbers.
    pub(super) fn gather(
        slices: impl Iterator<Item = &'a EndpointSlice>,
        port: &ServicePort,
        family: IpFamily,
        node_context: NodeContext<'a>,
    ) -> Self {
        let mut found: Vec<(SocketAddr, &Endpoint)> = Vec::new();
        for slice in slices.filter(|slice| slice.ipv6 == (family == IpFamily::V6)) {
            let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in ports.map(|p| p.port) {
                found.extend(slice.endpoints.iter().map(|e| (SocketAddr::new(e.address, number), e)));
            }
        }
        // Equal ones stay in order.
        found.sort_by_key(|(address, _)| *address);
        found.dedup_by(|(next, endpoint), (address, kept)| {
            let is_double = next == address;
            // An address may move from a terminating pod to a new one: the one that stays is the truth.
            if is_double && !endpoint.terminating {
                *kept = endpoint;
            }
            is_double
        });
        Self { found, node_context }
    }

    /// Endpoints anywhere in the cluster that are meant for this node, sorted. Hints speak of ready endpoints only: where
    /// there is none, those that still serve while they terminate are for everyone.
    pub(super) fn cluster(&self) -> Vec<SocketAddr> {
        let ready = self.endpoints().filter(|endpoint| endpoint.ready);
        let topology = Topology::of(
            ready.map(|endpoint| &endpoint.hints),
            self.node_context.node,
            self.node_context.zone,
        );
        let ready = self.pick(|endpoint| endpoint.ready && topology.allows(&endpoint.hints));
        if ready.is_empty() { self.pick(|endpoint| endpoint.serving && endpoint.terminating) } else { ready }
    }

    /// Endpoints of this node whatever their hints, sorted: the ready ones; where there is none, those that still serve
    /// while they terminate.
    pub(super) fn local(&self) -> Vec<SocketAddr> {
        let ready = self.pick(|endpoint| self.is_local(endpoint) && endpoint.ready);
        if ready.is_empty() {
            self.pick(|endpoint| self.is_local(endpoint) && endpoint.serving && endpoint.terminating)
        } else {
            ready
        }
    }

    /// Endpoints that serve, for any client, sorted.
    pub(super) fn serving(&self) -> Vec<SocketAddr> {
        self.pick(|endpoint| endpoint.serving)
    }

    /// Where those run that serve.
    pub(super) fn places(&self) -> Places {
        // Mostly both are empty. The default takes no memory, other than the list made of an empty vector.
        let list =
            |found: Vec<SocketAddr>| if found.is_empty() { Endpoints::default() } else { found.into() };
        Places {
            local: list(self.pick(|endpoint| self.is_local(endpoint) && endpoint.serving)),
            unknown: list(self.pick(|endpoint| endpoint.node.is_none() && endpoint.serving)),
        }
    }

    /// Addresses of the ready endpoints of this node; one may come several times.
    pub(super) fn ready_here(&self) -> impl Iterator<Item = IpAddr> {
        let node_context = self.endpoints().filter(|endpoint| self.is_local(endpoint) && endpoint.ready);
        node_context.map(|endpoint| endpoint.address)
    }

    fn endpoints(&self) -> impl Iterator<Item = &'a Endpoint> + Clone {
        self.found.iter().map(|(_, endpoint)| *endpoint)
    }

    pub(super) fn is_local(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node_context.node)
    }

    fn pick(&self, fit: impl Fn(&Endpoint) -> bool) -> Vec<SocketAddr> {
        let fitting = self.found.iter().filter(|(_, endpoint)| fit(endpoint));
        fitting.map(|(address, _)| *address).collect()
    }
}
