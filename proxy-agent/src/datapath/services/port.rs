//! The state of a service port that is in the maps.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use proxy_common::layout::{
    frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES},
    id::Id,
    set::{BackendSet, SetPolicy},
};

use crate::{
    datapath::{
        address::{protocol_number, protocol_of},
        slices::Slice,
    },
    model::plan::{Endpoints, Frontend, IpFamily, Places, PortName, PortPlan},
    sorted::SortedMap,
};

/// Sets of a service port.
pub(super) const POLICIES: usize = SetPolicy::ALL.len();

/// The entries in the maps for a service port.
#[derive(Debug, Default)]
pub(super) struct PortState {
    pub(super) id: Id,
    /// Its name is in the map.
    pub(super) is_named: bool,
    /// The frontends that it wants, with `FRONTEND_*` bits. It has those that it owns.
    pub(super) frontends: SortedMap<OwnedFrontend, u32>,
    /// By [`SetPolicy`]. Policies with the same endpoints share one slice.
    pub(super) sets: [SetState; POLICIES],
    pub(super) backends: SortedMap<SocketAddr, Member>,
    /// Some of the backends were in no set when they were taken over: those that are in none after the next change go.
    pub(super) has_strays: bool,
    /// Where endpoints run, as written in the slots; `None` if that is not known.
    pub(super) places: Option<Places>,
    /// How long clients keep their backend, in jiffies; 0: they do not.
    pub(super) affinity: u32,
    /// Clients that may use frontends with source ranges.
    pub(super) sources: BTreeSet<IpNet>,
}

/// A backend of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) id: Id,
    /// [`SetPolicy::bit`]s of the sets it is in.
    pub(super) set_policies: u8,
}

/// A published set and its members.
#[derive(Clone, Debug, Default)]
pub(super) struct SetState {
    pub(super) set: BackendSet,
    pub(super) endpoints: Endpoints,
}

impl SetState {
    pub(super) fn slice(&self) -> Slice {
        Slice { base: self.set.base(), len: self.set.count() }
    }
}

impl PortState {
    /// The distinct slices.
    pub(super) fn slices(&self) -> Vec<Slice> {
        let mut slices: Vec<Slice> = self.sets.iter().map(SetState::slice).collect();
        slices.retain(|slice| slice.len > 0);
        slices.sort_unstable_by_key(|slice| slice.base);
        slices.dedup();
        slices
    }
}

/// A key of `frontends_*` of either family, which only one service port can have. External IPs and addresses of
/// load balancers look alike here, as they do in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct OwnedFrontend {
    /// The unspecified address stands for all nodePort addresses of the node; port 0 for all ports of an address.
    pub(super) address: SocketAddr,
    /// IP protocol number; 0 with port 0.
    pub(super) protocol: u8,
}

impl OwnedFrontend {
    pub(super) fn node_port(family: IpFamily, port: u16, protocol: u8) -> Self {
        let any: IpAddr = match family {
            IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
            IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self { address: SocketAddr::new(any, port), protocol }
    }

    pub(super) fn family(&self) -> IpFamily {
        IpFamily::of(&self.address.ip())
    }

    pub(super) fn is_node_port(&self) -> bool {
        self.address.ip().is_unspecified()
    }
}

impl fmt::Display for OwnedFrontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match protocol_of(self.protocol) {
            None => write!(f, "{}", self.address.ip()),
            Some(protocol) if self.is_node_port() => {
                write!(f, "node port {} ({protocol})", self.address.port())
            }
            Some(protocol) => write!(f, "{} ({protocol})", self.address),
        }
    }
}

/// A plan's frontends in the map: keys and `FRONTEND_*` bits. Where two fall on one key, the stricter holds.
pub(super) fn owned_frontends(plan: &PortPlan) -> SortedMap<OwnedFrontend, u32> {
    let sources = if plan.sources.is_some() { FRONTEND_SOURCE_RANGES } else { 0 };
    let mut owned_frontends = SortedMap::default();
    for frontend in &plan.frontends {
        let (owned, flags) = owned_frontend(&plan.name, *frontend);
        let sources = if matches!(frontend, Frontend::LoadBalancer(_)) { sources } else { 0 };
        let known = owned_frontends.get(&owned).copied().unwrap_or(0);
        owned_frontends.insert(owned, known | flags | sources);
    }
    owned_frontends
}

fn owned_frontend(name: &PortName, frontend: Frontend) -> (OwnedFrontend, u32) {
    let protocol = protocol_number(name.protocol);
    match frontend {
        Frontend::ClusterIp(address) => (OwnedFrontend { address, protocol }, FRONTEND_CLUSTER_IP),
        Frontend::ClusterAddress(ip) => {
            let address = SocketAddr::new(ip, 0);
            (OwnedFrontend { address, protocol: 0 }, FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS)
        }
        Frontend::LoadBalancerAddress(ip) => {
            (OwnedFrontend { address: SocketAddr::new(ip, 0), protocol: 0 }, FRONTEND_ADDRESS)
        }
        Frontend::ExternalIp(address) | Frontend::LoadBalancer(address) => {
            (OwnedFrontend { address, protocol }, 0)
        }
        Frontend::NodePort(port) => (OwnedFrontend::node_port(name.family, port, protocol), 0),
    }
}
