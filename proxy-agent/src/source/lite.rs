//! The API's objects with only the fields that the proxy reads: a tenth of the memory of the full types.
//!
//! Lists may be `null` and numbers out of range: [`convert`](super::convert) judges them one by one.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::{ClusterResourceScope, NamespaceResourceScope, ObjectMeta, Resource};
use serde::{Deserialize, Deserializer};

/// `v1/Service`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceLite {
    /// Name, namespace, labels and version only.
    #[serde(default, deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: ServiceSpecLite,
    /// What is.
    #[serde(default, deserialize_with = "or_default")]
    pub status: ServiceStatusLite,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpecLite {
    /// ClusterIP, NodePort, LoadBalancer or ExternalName.
    pub r#type: Option<String>,
    /// Empty, `None` (headless) or an address.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// One per family.
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    /// The families, in the order of `clusterIPs`.
    #[serde(deserialize_with = "or_default")]
    pub ip_families: Vec<String>,
    /// Addresses that somebody else leads to the nodes.
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<String>,
    /// Who may use the load balancer's addresses; empty: everyone.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<String>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<String>,
    /// How `sessionAffinity` is meant.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity_config: AffinityConfigLite,
    /// Where load balancers ask for this node's endpoints; 0 is nowhere.
    pub health_check_node_port: Option<i64>,
    /// The ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePortLite>,
}

/// `sessionAffinityConfig` of a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AffinityConfigLite {
    /// For `ClientIP`.
    #[serde(rename = "clientIP", deserialize_with = "or_default")]
    pub client_ip: ClientIpLite,
}

/// `sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpLite {
    /// Seconds.
    pub timeout_seconds: Option<i64>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatusLite {
    /// What the load balancer's controller says.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: LoadBalancerLite,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancerLite {
    /// Where clients enter.
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<IngressLite>,
}

/// A way in. `hostname` and `ports` are for others.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressLite {
    /// An address, unless the way in has a host name only.
    pub ip: Option<String>,
    /// `VIP` if none: packets arrive with this destination. `Proxy`: they do not.
    pub ip_mode: Option<String>,
}

/// A port of a Service. `targetPort` is for the controller that writes the slices.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePortLite {
    /// Its name; none if it is the only one.
    pub name: Option<String>,
    /// TCP if none.
    pub protocol: Option<String>,
    /// The port of the cluster IP.
    pub port: Option<i64>,
    /// The port on every node; 0 is none.
    pub node_port: Option<i64>,
}

/// `discovery.k8s.io/v1/EndpointSlice`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSliceLite {
    /// Name, namespace, labels, version and [`LAST_CHANGE`] only.
    #[serde(deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// IPv4, IPv6 or FQDN.
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<EndpointLite>,
    /// Their ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<SlicePortLite>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointLite {
    /// Only the first has a meaning.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// Its state.
    #[serde(deserialize_with = "or_default")]
    pub conditions: ConditionsLite,
    /// Where it runs.
    pub node_name: Option<String>,
    /// For whom it is meant.
    #[serde(deserialize_with = "or_default")]
    pub hints: HintsLite,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HintsLite {
    /// Zones whose clients should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<HintLite>,
    /// Nodes whose clients should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_nodes: Vec<HintLite>,
}

/// A zone or node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HintLite {
    /// Its name.
    pub name: String,
}

/// State of an endpoint. None is true, true and false.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConditionsLite {
    /// May receive new connections.
    pub ready: Option<bool>,
    /// Would answer.
    pub serving: Option<bool>,
    /// Is being deleted.
    pub terminating: Option<bool>,
}

/// A port of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SlicePortLite {
    /// None means that the port is to be ignored; the empty string is a name.
    pub name: Option<String>,
    /// TCP if none.
    pub protocol: Option<String>,
    /// None means all ports, which no Service port matches.
    pub port: Option<i64>,
}

/// `v1/Node`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeLite {
    /// Name, labels, version and time of deletion only.
    #[serde(default, deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: NodeSpecLite,
    /// What the kubelet says.
    #[serde(default, deserialize_with = "or_default")]
    pub status: NodeStatusLite,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpecLite {
    /// What keeps pods off it.
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<TaintLite>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TaintLite {
    /// Its key: all that matters here.
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatusLite {
    /// Its addresses.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddressLite>,
}

/// An address of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeAddressLite {
    /// InternalIP, ExternalIP, Hostname, ...
    pub r#type: String,
    /// The address or name.
    pub address: String,
}

/// `networking.k8s.io/v1/ServiceCIDR`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceCidrLite {
    /// Name and version only.
    #[serde(default, deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: ServiceCidrSpecLite,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpecLite {
    /// One prefix per family at most.
    #[serde(deserialize_with = "or_default")]
    pub cidrs: Vec<String>,
}

/// `null` is what a nil list or struct of Go becomes in JSON.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// When the change that an EndpointSlice shows happened.
pub const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Reads only what is used of the metadata: managed fields and annotations are most of a small object.
fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<Annotations>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Annotations {
        #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
        last_change: Option<String>,
    }
    let Metadata { name, namespace, resource_version, deletion_timestamp, labels, annotations } =
        or_default(deserializer)?;
    let annotations = annotations
        .and_then(|annotations| annotations.last_change)
        .map(|time| BTreeMap::from([(LAST_CHANGE.to_owned(), time)]));
    Ok(ObjectMeta {
        name,
        namespace,
        resource_version,
        deletion_timestamp,
        labels,
        annotations,
        ..ObjectMeta::default()
    })
}

macro_rules! resource {
    ($lite:ty, $kind:literal, $group:literal, $plural:literal, $scope:ty) => {
        impl Resource for $lite {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(ServiceLite, "Service", "", "services", NamespaceResourceScope);
resource!(EndpointSliceLite, "EndpointSlice", "discovery.k8s.io", "endpointslices", NamespaceResourceScope);
resource!(NodeLite, "Node", "", "nodes", ClusterResourceScope);
resource!(ServiceCidrLite, "ServiceCIDR", "networking.k8s.io", "servicecidrs", ClusterResourceScope);
