//! The wanted state of one Service in the maps of this node.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::objects::{ObjectName, Protocol};

/// Endpoints, sorted and without duplicates. Lists that are equal are shared, because mostly all lists of a port are.
pub type Endpoints = Arc<[SocketAddr]>;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The name of a Service port of one family: its backends are one set, shared by all its frontends.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name, possibly empty.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: IpFamily,
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, port, .. } = self;
        if port.is_empty() { write!(f, "{service}") } else { write!(f, "{service}:{port}") }
    }
}

/// Where clients reach a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Frontend {
    /// A cluster IP and port, for clients in the cluster.
    ClusterIp(SocketAddr),
    /// Every other port of a cluster IP, and pings to it: rejected and answered, never forwarded. All ports of a Service
    /// have it, so several service ports of one Service want one address.
    ClusterAddress(IpAddr),
    /// One of `externalIPs`, with the port.
    ExternalIp(SocketAddr),
    /// An address of a load balancer, with the port. The only one that source ranges govern.
    LoadBalancer(SocketAddr),
    /// Every other port of a load balancer's address: packets that would leave this node again are stopped, because the router sent them
    /// here. Claimed like [`Frontend::ClusterAddress`], and Services may share it.
    LoadBalancerAddress(IpAddr),
    /// A port on every nodePort address of this node.
    NodePort(u16),
}

/// Where an endpoint runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node.
    Local,
    /// On another node.
    Remote,
    /// Its EndpointSlice has no node name: the route decides.
    Unknown,
}

/// Where endpoints run: those that are in neither list run on other nodes, which most do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Endpoints of this node, sorted.
    pub local: Endpoints,
    /// Endpoints without `nodeName`, sorted.
    pub unknown: Endpoints,
}

impl Places {
    /// Where an endpoint runs.
    pub fn of(&self, endpoint: &SocketAddr) -> Place {
        if self.local.binary_search(endpoint).is_ok() {
            Place::Local
        } else if self.unknown.binary_search(endpoint).is_ok() {
            Place::Unknown
        } else {
            Place::Remote
        }
    }
}

/// One Service port of one family: its frontends and endpoints.
///
/// Where `cluster` is empty, connections are rejected; where it is
/// not but the list that a policy gives is, they are dropped: there are endpoints, only not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Which port this is.
    pub name: PortName,
    /// Its frontends.
    pub frontends: Vec<Frontend>,
    /// Endpoints behind the cluster IPs (`internalTrafficPolicy` applied).
    pub internal: Endpoints,
    /// Endpoints behind every other frontend for clients outside (`externalTrafficPolicy` applied). Equal to `cluster`
    /// without such a frontend.
    pub external: Endpoints,
    /// Endpoints without policies: those that pods and this node reach through every other frontend.
    pub cluster: Endpoints,
    /// Endpoints that may keep the flows they have: all of the above, and those that serve but get no new ones (policies,
    /// topology and termination ignored, as kube-proxy's conntrack cleanup does). UDP flows leave every other one.
    pub serving: Endpoints,
    /// Which of `serving` run where, by their `nodeName`.
    pub places: Places,
    /// How long a client keeps its endpoint, if it does.
    pub affinity: Option<Duration>,
    /// Allowed clients of [`Frontend::LoadBalancer`] frontends; `None`: everyone.
    pub sources: Option<Vec<IpNet>>,
}

impl PortPlan {
    /// Whether it has endpoints, but none that the policy for cluster IPs allows here.
    pub fn lacks_internal(&self) -> bool {
        self.internal.is_empty() && !self.cluster.is_empty()
    }

    /// Whether it has endpoints, but none that the policy for clients outside allows here.
    pub fn lacks_external(&self) -> bool {
        self.external.is_empty() && !self.cluster.is_empty()
    }
}

/// A Service's state on this node, besides its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// A plan per port and family, in the order of the Service's addresses and ports.
    pub ports: Vec<PortPlan>,
    /// The reply to load balancers' health checks.
    pub health_check: Option<HealthCheck>,
}

impl ServicePlan {
    /// Takes the lists of endpoints that did not change from the plan before. With a new allocation for each, the heap would become
    /// fragmented when many Services change.
    pub fn keep_lists(&mut self, before: &Self) {
        for (port, before) in self.ports.iter_mut().zip(&before.ports) {
            let known = [&before.cluster, &before.serving, &before.internal, &before.external];
            for list in [&mut port.internal, &mut port.external, &mut port.cluster, &mut port.serving] {
                if let Some(known) = known.into_iter().find(|known| *known == list) {
                    *list = Arc::clone(known);
                }
            }
        }
    }
}

/// The answer on a Service's `healthCheckNodePort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The TCP port to answer at.
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node, over all ports; terminating ones do not count.
    pub local_endpoints: usize,
}
