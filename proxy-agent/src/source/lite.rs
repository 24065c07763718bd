//! The API's objects with only the fields that the proxy reads: a tenth of the memory of the full types.
//!
//! Lists may be `null` and numbers out of range: [`convert`](super::convert) judges them one by one.

use std::{borrow::Cow, collections::BTreeMap};

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
    /// Only whether there are any matters, for the external policy.
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<String>,
    /// The ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePortLite>,
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
    /// Name, namespace, labels and version only.
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
    /// Name, labels and version only.
    #[serde(default, deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// What the kubelet says.
    #[serde(default, deserialize_with = "or_default")]
    pub status: NodeStatusLite,
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

/// `null` is what a nil list or struct of Go becomes in JSON.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads only what is used of the metadata: managed fields and annotations are most of a small object.
fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        labels: Option<BTreeMap<String, String>>,
    }
    let Metadata { name, namespace, resource_version, labels } = or_default(deserializer)?;
    Ok(ObjectMeta { name, namespace, resource_version, labels, ..ObjectMeta::default() })
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
