//! Endpoints, which EndpointSlices replaced. Manifests may still have them.

use kube::core::ObjectMeta;
use serde::Deserialize;

use super::{TrimmedSlicePort, or_default};

/// With this label and the value `true`, nothing is made of an Endpoints object.
pub const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// An Endpoints object with this annotation is a lock of leader election.
pub const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// `v1/Endpoints`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedEndpoints {
    /// All of it.
    #[serde(deserialize_with = "or_default")]
    pub metadata: ObjectMeta,
    /// Addresses, by their ports.
    #[serde(deserialize_with = "or_default")]
    pub subsets: Vec<TrimmedSubset>,
}

/// Addresses with the same ports.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedSubset {
    /// Ready ones.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<TrimmedEndpointAddress>,
    /// Others.
    #[serde(deserialize_with = "or_default")]
    pub not_ready_addresses: Vec<TrimmedEndpointAddress>,
    /// Their ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<TrimmedSlicePort>,
}

/// An endpoint of a subset.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedEndpointAddress {
    /// Its address.
    pub ip: String,
    /// Where it runs.
    pub node_name: Option<String>,
}
