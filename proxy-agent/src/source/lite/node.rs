//! Nodes.

use kube::core::{ClusterResourceScope, ObjectMeta};
use serde::Deserialize;

use super::{or_default, trimmed};

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

resource!(NodeLite, "Node", "", "nodes", ClusterResourceScope);
