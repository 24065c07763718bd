//! ServiceCIDRs.

use kube::core::{ClusterResourceScope, ObjectMeta};
use serde::Deserialize;

use super::{or_default, trimmed};

/// `networking.k8s.io/v1/ServiceCIDR`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TrimmedServiceCidr {
    /// Name and version only.
    #[serde(default, deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// The wanted state.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: TrimmedServiceCidrSpec,
}

/// `spec` of a ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedServiceCidrSpec {
    /// One prefix per family at most.
    #[serde(deserialize_with = "or_default")]
    pub cidrs: Vec<String>,
}

resource!(TrimmedServiceCidr, "ServiceCIDR", "networking.k8s.io", "servicecidrs", ClusterResourceScope);
