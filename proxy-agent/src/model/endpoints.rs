//! Which endpoints of a Service port get new connections.
//!
//! Follows kube-proxy's `CategorizeEndpoints` (KEP-1669 for terminating endpoints, KEP-2086 for
//! `internalTrafficPolicy`).

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    objects::{EndpointSlice, ServicePort},
    plan::IpFamily,
};

/// The endpoints of one Service port and family, and what decides about them.
#[derive(Debug, Default)]
pub(super) struct Candidates(BTreeMap<SocketAddr, Candidate>);

#[derive(Clone, Copy, Debug)]
struct Candidate {
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
}

impl Candidates {
    /// Gathers them from all slices of the Service. Slices may give one port name different numbers.
    pub(super) fn gather<'a>(
        slices: impl Iterator<Item = &'a EndpointSlice>,
        port: &ServicePort,
        family: IpFamily,
        node: &str,
    ) -> Self {
        let mut found = BTreeMap::new();
        for slice in slices.filter(|slice| slice.ipv6 == (family == IpFamily::V6)) {
            let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in ports.map(|p| p.port) {
                for endpoint in &slice.endpoints {
                    let address = SocketAddr::new(endpoint.address, number);
                    // An address may move from a terminating pod to a new one: the one that stays is the truth.
                    if endpoint.terminating && found.contains_key(&address) {
                        continue;
                    }
                    let candidate = Candidate {
                        local: endpoint.node.as_deref() == Some(node),
                        ready: endpoint.ready,
                        serving: endpoint.serving,
                        terminating: endpoint.terminating,
                    };
                    found.insert(address, candidate);
                }
            }
        }
        Self(found)
    }

    /// Endpoints anywhere in the cluster, sorted.
    pub(super) fn cluster(&self) -> Vec<SocketAddr> {
        self.usable(|_| true)
    }

    /// Endpoints of this node, sorted.
    pub(super) fn local(&self) -> Vec<SocketAddr> {
        self.usable(|candidate| candidate.local)
    }

    /// The ready ones; where there is none, those that still serve while they terminate.
    fn usable(&self, wanted: impl Fn(&Candidate) -> bool) -> Vec<SocketAddr> {
        let pick = |fit: fn(&Candidate) -> bool| -> Vec<_> {
            self.0.iter().filter(|(_, c)| wanted(c) && fit(c)).map(|(address, _)| *address).collect()
        };
        let ready = pick(|c| c.ready);
        if ready.is_empty() { pick(|c| c.serving && c.terminating) } else { ready }
    }
}
