//! The parts of Kubernetes objects that the proxy needs.
//!
//! Sources convert objects into these at once, so that no full API object is ever kept.

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name of an object in a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name } = self;
        write!(f, "{namespace}/{name}")
    }
}

/// A transport protocol that a Service port can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// The default when a port names none.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// A Service that the proxy serves: neither headless nor of type ExternalName.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// At most one per address family.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// Governs the cluster IPs.
    pub internal_policy: TrafficPolicy,
    /// Governs node ports, external IPs and load balancer IPs; `Cluster` where the field does not apply.
    pub external_policy: TrafficPolicy,
    /// `externalIPs`, of both families, without duplicates.
    pub external_ips: Vec<IpAddr>,
    /// Addresses in `status.loadBalancer.ingress` whose `ipMode` is VIP, of both families, without duplicates.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`, of both families, without duplicates; `None`: everyone, an empty list: no client.
    /// They restrict the load balancer IPs only.
    pub source_ranges: Option<Vec<IpNet>>,
    /// `sessionAffinity: ClientIP`: how long a client that opens no connection keeps its endpoint (1 s to a day).
    pub affinity: Option<Duration>,
    /// Where load balancers check whether this node has endpoints; only where it applies (type LoadBalancer
    /// with external policy Local).
    pub health_check_node_port: Option<u16>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty when the Service has a single unnamed port.
    pub name: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port of the cluster IP.
    pub port: u16,
    /// The port on every node, if there is one.
    pub node_port: Option<u16>,
}

/// One EndpointSlice of addresses of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its name.
    pub name: ObjectName,
    /// The Service it belongs to, by its `kubernetes.io/service-name` label.
    pub service: ObjectName,
    /// `addressType` is IPv6 (else IPv4).
    pub ipv6: bool,
    /// The ports that every endpoint of the slice has.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When the change that it shows happened: annotation `endpoints.kubernetes.io/last-change-trigger-time`.
    pub triggered: Option<SystemTime>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Must equal the Service port's name.
    pub name: Arc<str>,
    /// Must equal the Service port's protocol.
    pub protocol: Protocol,
    /// Where the endpoint listens. Slices of one Service may differ in it.
    pub port: u16,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first address of the endpoint; the API gives no meaning to others.
    pub address: IpAddr,
    /// The node it runs on, when known.
    pub node: Option<Arc<str>>,
    /// May receive new connections.
    pub ready: bool,
    /// Would answer, ready or not.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// The zones and nodes that should use it, if the slice's controller set hints.
    pub hints: Hints,
}

/// `hints` of an endpoint (KEP-2433, KEP-4444): for whom it is meant. Most have none, which takes one word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints(Option<Box<HintedNames>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct HintedNames {
    zones: Box<[Arc<str>]>,
    nodes: Box<[Arc<str>]>,
}

impl Hints {
    /// Hints for clients in these zones, and for clients on these nodes.
    pub fn new(zones: Vec<Arc<str>>, nodes: Vec<Arc<str>>) -> Self {
        let is_none = zones.is_empty() && nodes.is_empty();
        Self((!is_none).then(|| Box::new(HintedNames { zones: zones.into(), nodes: nodes.into() })))
    }

    /// The zones whose clients it is meant for.
    pub fn zones(&self) -> &[Arc<str>] {
        self.0.as_ref().map_or(&[], |names| &names.zones)
    }

    /// The nodes whose clients it is meant for.
    pub fn nodes(&self) -> &[Arc<str>] {
        self.0.as_ref().map_or(&[], |names| &names.nodes)
    }

    /// All names.
    pub(super) fn names_mut(&mut self) -> impl Iterator<Item = &mut Arc<str>> {
        self.0.iter_mut().flat_map(|names| names.zones.iter_mut().chain(&mut names.nodes))
    }
}

/// The node the agent runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its addresses (internal ones first), of both families.
    pub addresses: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Load balancers should send no new connections here (KEP-3836): the Node is being deleted, or has the
    /// taint `ToBeDeletedByClusterAutoscaler`.
    pub leaving: bool,
}

/// A range of service addresses, `networking.k8s.io/v1` ServiceCIDR (KEP-1880).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name; the namespace is empty.
    pub name: ObjectName,
    /// One prefix per family at most.
    pub cidrs: Vec<IpNet>,
}

/// The kinds of object that are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Services.
    Service,
    /// EndpointSlices.
    EndpointSlice,
    /// ServiceCIDRs. Old API servers have none, so nothing waits for their list.
    ServiceCidr,
}

/// A change that a source sends to the model. Sources send facts without interpreting them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service appeared or changed.
    Service(Service),
    /// A Service was deleted, or is no longer one that the proxy serves.
    ServiceGone(ObjectName),
    /// An EndpointSlice appeared or changed.
    EndpointSlice(EndpointSlice),
    /// An EndpointSlice is gone.
    EndpointSliceGone(ObjectName),
    /// This node's object appeared or changed.
    Node(Node),
    /// This node's object is gone.
    NodeGone,
    /// A range of service addresses appeared or changed.
    ServiceCidr(ServiceCidr),
    /// A range of service addresses is gone.
    ServiceCidrGone(ObjectName),
    /// A full list of one kind begins: an object that is not named until its `ListDone` was deleted.
    ListStart(Kind),
    /// The full list is complete.
    ListDone(Kind),
}
