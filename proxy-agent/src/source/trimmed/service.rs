//! Services.

use kube::core::{NamespaceResourceScope, ObjectMeta};
use serde::Deserialize;

use super::{or_default, trimmed};

/// `v1/Service`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TrimmedService {
    /// Name, namespace, labels and version only.
    #[serde(default, deserialize_with = "trimmed")]
    pub metadata: ObjectMeta,
    /// The wanted state.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: TrimmedServiceSpec,
    /// The present state.
    #[serde(default, deserialize_with = "or_default")]
    pub status: TrimmedServiceStatus,
}

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedServiceSpec {
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
    /// Addresses that are routed to the nodes by other means.
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: Option<String>,
    /// Allowed clients of the load balancer's addresses; empty: everyone.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<String>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<String>,
    /// How `sessionAffinity` is meant.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity_config: TrimmedAffinityConfig,
    /// Where load balancers check this node's endpoints; 0 is nowhere.
    pub health_check_node_port: Option<i64>,
    /// The ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<TrimmedServicePort>,
}

/// `sessionAffinityConfig` of a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedAffinityConfig {
    /// For `ClientIP`.
    #[serde(rename = "clientIP", deserialize_with = "or_default")]
    pub client_ip: TrimmedClientIp,
}

/// `sessionAffinityConfig.clientIP` of a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedClientIp {
    /// Seconds.
    pub timeout_seconds: Option<i64>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedServiceStatus {
    /// The state that the load balancer's controller reports.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: TrimmedLoadBalancer,
}

/// `status.loadBalancer` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TrimmedLoadBalancer {
    /// Where clients enter.
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<TrimmedIngress>,
}

/// A way in. `hostname` and `ports` are for others.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedIngress {
    /// An address, unless the way in has a host name only.
    pub ip: Option<String>,
    /// `VIP` if none: packets arrive with this destination. `Proxy`: they do not.
    pub ip_mode: Option<String>,
}

/// A port of a Service. `targetPort` is for the controller that writes the slices.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrimmedServicePort {
    /// Its name; none if it is the only one.
    pub name: Option<String>,
    /// TCP if none.
    pub protocol: Option<String>,
    /// The port of the cluster IP.
    pub port: Option<i64>,
    /// The port on every node; 0 is none.
    pub node_port: Option<i64>,
}

resource!(TrimmedService, "Service", "", "services", NamespaceResourceScope);
