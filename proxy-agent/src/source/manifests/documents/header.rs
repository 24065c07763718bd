//! Kind and name of an object.

use std::fmt;

use serde::Deserialize;

/// The fields of every object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
}

/// The proxy's use of an object, by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Service,
    EndpointSlice,
    Endpoints,
    Node,
    ServiceCidr,
    List,
    /// Another node's.
    OtherNode,
    /// Not used.
    Other,
}

impl Header {
    /// # Errors
    /// Names the field that is missing.
    pub(super) fn meaning(&self, default: Meaning, node: &str) -> Result<Meaning, String> {
        let meaning = self.kind_of_object(default)?;
        match meaning {
            Meaning::List | Meaning::Other => Ok(meaning),
            _ if self.name().is_empty() => {
                let kind = self.kind.as_deref().unwrap_or("object");
                Err(format!("the {kind} has no `metadata.name`"))
            }
            Meaning::Node if self.name() != node => Ok(Meaning::OtherNode),
            _ => Ok(meaning),
        }
    }

    fn name(&self) -> &str {
        self.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default()
    }

    fn kind_of_object(&self, default: Meaning) -> Result<Meaning, String> {
        let Some(kind) = self.kind.as_deref() else {
            return if default == Meaning::Other {
                Err("the document has no `kind`".to_owned())
            } else {
                Ok(default)
            };
        };
        let version = self.api_version.as_deref().ok_or_else(|| format!("the {kind} has no `apiVersion`"))?;
        Ok(match (version, kind) {
            ("v1", "Service") => Meaning::Service,
            ("discovery.k8s.io/v1", "EndpointSlice") => Meaning::EndpointSlice,
            ("v1", "Endpoints") => Meaning::Endpoints,
            ("v1", "Node") => Meaning::Node,
            ("networking.k8s.io/v1", "ServiceCIDR") => Meaning::ServiceCidr,
            ("discovery.k8s.io/v1beta1", "EndpointSlice") => {
                return Err("apiVersion of the EndpointSlice must be discovery.k8s.io/v1".to_owned());
            }
            ("v1", "List" | "ServiceList" | "EndpointsList" | "NodeList")
            | ("discovery.k8s.io/v1", "EndpointSliceList")
            | ("networking.k8s.io/v1", "ServiceCIDRList") => Meaning::List,
            _ => Meaning::Other,
        })
    }

    /// The type of a list's items if they have none, as those of `kubectl get --raw`.
    pub(super) fn items(&self) -> Meaning {
        match self.kind.as_deref() {
            Some("ServiceList") => Meaning::Service,
            Some("EndpointSliceList") => Meaning::EndpointSlice,
            Some("EndpointsList") => Meaning::Endpoints,
            Some("NodeList") => Meaning::Node,
            Some("ServiceCIDRList") => Meaning::ServiceCidr,
            _ => Meaning::Other,
        }
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_deref().unwrap_or("an object"))?;
        let namespace = self.metadata.as_ref().and_then(|metadata| metadata.namespace.as_deref());
        match (namespace, self.name()) {
            (_, "") => Ok(()),
            (None | Some(""), name) => write!(f, " {name}"),
            (Some(namespace), name) => write!(f, " {namespace}/{name}"),
        }
    }
}
