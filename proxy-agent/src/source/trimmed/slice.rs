//! EndpointSlices.

use kube::core::{NamespaceResourceScope, ObjectMeta};
use serde::Deserialize;

use super::{first, or_default, trimmed};

/// When the change that an EndpointSlice shows happened.
pub const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// `discovery.k8s.io/v1/EndpointSlice`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedEndpointSlice {
    /// Name, namespace, version, labels that are read, and [`LAST_CHANGE`] only.
    #[serde(deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// IPv4, IPv6 or FQDN.
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<TrimmedEndpoint>,
    /// Their ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<TrimmedSlicePort>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedEndpoint {
    /// The first of `addresses`: only that has a meaning.
    #[serde(rename = "addresses", deserialize_with = "first")]
    pub address: Option<String>,
    /// Its state.
    #[serde(deserialize_with = "or_default")]
    pub conditions: TrimmedConditions,
    /// Where it runs.
    pub node_name: Option<String>,
    /// For whom it is meant.
    #[serde(deserialize_with = "or_default")]
    pub hints: TrimmedHints,
}

/// `hints` of an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedHints {
    /// Zones whose clients should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<TrimmedHint>,
    /// Nodes whose clients should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_nodes: Vec<TrimmedHint>,
}

/// A zone or node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedHint {
    /// Its name.
    pub name: String,
}

/// State of an endpoint. None is true, true and false.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedConditions {
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
pub struct TrimmedSlicePort {
    /// None means the empty one, which the API server makes of it.
    pub name: Option<String>,
    /// TCP if none.
    pub protocol: Option<String>,
    /// None means all ports, which no Service port matches.
    pub port: Option<i64>,
}

resource!(
    TrimmedEndpointSlice,
    "EndpointSlice",
    "discovery.k8s.io",
    "endpointslices",
    NamespaceResourceScope
);
