//! From the API's objects to the model's: the one place that knows how the API spells things.
//!
//! A wrong part is dropped alone and named in [`Converted::problems`]; the rest of the object works.

mod address;
mod endpoints;
mod node;
mod service;
mod service_cidr;
mod slice;

use kube::core::ObjectMeta;

pub use self::{
    address::{parse_cidr, parse_ip},
    endpoints::{Mirrored, endpoints},
    node::node,
    service::service,
    service_cidr::{service_cidr, service_cidr_name},
    slice::endpoint_slice,
};
use crate::model::objects::{Change, ObjectName, Protocol};

/// A change, and the parts of the object that could not be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Converted {
    /// The result.
    pub change: Change,
    /// Parts that were dropped and why, for people.
    pub problems: Vec<String>,
}

/// The name of an object; `default` where no namespace is given.
pub fn object_name(metadata: &ObjectMeta) -> ObjectName {
    ObjectName::new(
        metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default"),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("protocol `{other}` is not TCP, UDP or SCTP")),
    }
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn has_label(metadata: &ObjectMeta, key: &str) -> bool {
    label(metadata, key).is_some()
}

/// Parses each text once, in order; a text that `parse` does not know is reported as `field` that is not a `what`.
fn parse_all<'a, T: PartialEq>(
    texts: impl IntoIterator<Item = &'a String>,
    parse: impl Fn(&str) -> Option<T>,
    (field, what): (&str, &str),
    problems: &mut Vec<String>,
) -> Vec<T> {
    let mut found = Vec::new();
    for text in texts {
        match parse(text) {
            Some(value) if found.contains(&value) => {}
            Some(value) => found.push(value),
            None => problems.push(format!("{field} `{text}` is not {what}")),
        }
    }
    found
}
