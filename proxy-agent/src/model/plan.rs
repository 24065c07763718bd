//! What one Service should look like in the maps of this node.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::objects::{ObjectName, Protocol};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What identifies a Service port of one family: its backends are one set, shared by all its frontends.
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
    /// A port on every nodePort address of this node.
    NodePort(u16),
}

/// One Service port of one family: its frontends and who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// Which port this is.
    pub name: PortName,
    /// Its frontends.
    pub frontends: Vec<Frontend>,
    /// Endpoints behind the cluster IPs (`internalTrafficPolicy` applied), sorted, without duplicates.
    pub internal: Vec<SocketAddr>,
    /// Endpoints behind the node port for clients outside (`externalTrafficPolicy` applied), sorted, without
    /// duplicates. Equal to `cluster` where there is no node port.
    pub external: Vec<SocketAddr>,
    /// Endpoints whatever the policies, sorted, without duplicates: what pods and this node reach through the node port.
    /// Empty means refuse; not empty beside an empty `internal` or `external` means drop.
    pub cluster: Vec<SocketAddr>,
}
