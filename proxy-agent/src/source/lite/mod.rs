//! The API's objects with only the fields that the proxy reads: a tenth of the memory of the full types.
//!
//! Lists may be `null` and numbers out of range: [`convert`](super::convert) judges them one by one.

/// Says where the API serves the objects of a type.
macro_rules! resource {
    ($lite:ty, $kind:literal, $group:literal, $plural:literal, $scope:ty) => {
        impl kube::core::Resource for $lite {
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

mod node;
mod service;
mod service_cidr;
mod slice;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use serde::{Deserialize, Deserializer};

pub use self::{
    node::{NodeAddressLite, NodeLite, NodeSpecLite, NodeStatusLite, TaintLite},
    service::{
        AffinityConfigLite, ClientIpLite, IngressLite, LoadBalancerLite, ServiceLite, ServicePortLite,
        ServiceSpecLite, ServiceStatusLite,
    },
    service_cidr::{ServiceCidrLite, ServiceCidrSpecLite},
    slice::{
        ConditionsLite, EndpointLite, EndpointSliceLite, HintLite, HintsLite, LAST_CHANGE, SlicePortLite,
    },
};

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
