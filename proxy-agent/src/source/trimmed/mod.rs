//! The API's objects with only the fields that the proxy reads: a tenth of the memory of the full types.
//!
//! Lists may be `null` and numbers out of range: [`convert`](super::convert) judges them one by one.

/// Where the API serves the objects of a type.
macro_rules! resource {
    ($trimmed:ty, $kind:literal, $group:literal, $plural:literal, $scope:ty) => {
        impl kube::core::Resource for $trimmed {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
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

mod endpoints;
mod node;
mod service;
mod service_cidr;
mod slice;

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

pub use self::{
    endpoints::{LEADER, SKIP_MIRROR, TrimmedEndpointAddress, TrimmedEndpoints, TrimmedSubset},
    node::{TrimmedNode, TrimmedNodeAddress, TrimmedNodeSpec, TrimmedNodeStatus, TrimmedTaint},
    service::{
        TrimmedAffinityConfig, TrimmedClientIp, TrimmedIngress, TrimmedLoadBalancer, TrimmedService,
        TrimmedServicePort, TrimmedServiceSpec, TrimmedServiceStatus,
    },
    service_cidr::{TrimmedServiceCidr, TrimmedServiceCidrSpec},
    slice::{
        LAST_CHANGE, TrimmedConditions, TrimmedEndpoint, TrimmedEndpointSlice, TrimmedHint, TrimmedHints,
        TrimmedSlicePort,
    },
};

/// The first element of a list; others are not even kept for a moment.
fn first<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct First;
    impl<'de> Visitor<'de> for First {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let first = list.next_element()?;
            while let Some(IgnoredAny) = list.next_element()? {}
            Ok(first)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(First)
}

/// Go writes a nil list or struct as `null` in JSON.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Presence of this label, with any value, gives a Service to another proxy.
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Presence of this label marks an EndpointSlice of a headless Service.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// This label names the Service of an EndpointSlice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// This label names the zone of a Node.
pub const ZONE: &str = "topology.kubernetes.io/zone";

/// Reads only the used fields of the metadata: managed fields, annotations and labels of others are most of a small object.
fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        name: Option<String>,
        namespace: Option<String>,
        resource_version: Option<String>,
        deletion_timestamp: Option<Time>,
        labels: Option<Labels>,
        annotations: Option<Annotations>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Labels {
        #[serde(rename = "kubernetes.io/service-name")]
        service_name: Option<String>,
        #[serde(rename = "service.kubernetes.io/headless")]
        headless: Option<String>,
        #[serde(rename = "service.kubernetes.io/service-proxy-name")]
        service_proxy_name: Option<String>,
        #[serde(rename = "topology.kubernetes.io/zone")]
        zone: Option<String>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Annotations {
        #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
        last_change: Option<String>,
    }
    let Metadata { name, namespace, resource_version, deletion_timestamp, labels, annotations } =
        or_default(deserializer)?;
    let labels = labels.map(|labels| {
        let Labels { service_name, headless, service_proxy_name, zone } = labels;
        let known = [
            (SERVICE_NAME, service_name),
            (HEADLESS, headless),
            (SERVICE_PROXY_NAME, service_proxy_name),
            (ZONE, zone),
        ];
        known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    });
    let annotations = annotations
        .and_then(|annotations| annotations.last_change)
        .map(|time| [(LAST_CHANGE.to_owned(), time)].into());
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
