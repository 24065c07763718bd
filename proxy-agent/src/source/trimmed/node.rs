//! Nodes.

use kube::core::{ClusterResourceScope, ObjectMeta};
use serde::Deserialize;

use super::{or_default, trimmed};

/// `v1/Node`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TrimmedNode {
    /// Name, labels, version and time of deletion only.
    #[serde(default, deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// The wanted state.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: TrimmedNodeSpec,
    /// The state that the kubelet reports.
    #[serde(default, deserialize_with = "or_default")]
    pub status: TrimmedNodeStatus,
}

/// `spec` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedNodeSpec {
    /// Taints, which keep pods off it.
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<TrimmedTaint>,
}

/// A taint of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedTaint {
    /// Its key: all that matters here.
    pub key: String,
}

/// `status` of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedNodeStatus {
    /// Its addresses.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<TrimmedNodeAddress>,
}

/// An address of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedNodeAddress {
    /// InternalIP, ExternalIP, Hostname, ...
    pub r#type: String,
    /// The address or name.
    pub address: String,
}

resource!(TrimmedNode, "Node", "", "nodes", ClusterResourceScope);
