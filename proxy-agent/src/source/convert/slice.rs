//! EndpointSlices.

use std::{sync::Arc, time::SystemTime};

use super::{Converted, has_label, label, object_name, parse_ip, protocol};
use crate::{
    model::objects::{Change, Endpoint, EndpointSlice, Hints, ObjectName, SlicePort},
    source::lite::{
        EndpointLite, EndpointSliceLite, HEADLESS, HintLite, LAST_CHANGE, SERVICE_NAME, SlicePortLite,
    },
};

/// Converts an EndpointSlice. One of no Service, of a headless one, or of host names is gone.
pub fn endpoint_slice(lite: &EndpointSliceLite) -> Converted {
    let name = object_name(&lite.metadata);
    let mut problems = Vec::new();
    let service = label(&lite.metadata, SERVICE_NAME).filter(|service| !service.is_empty());
    let ipv6 = match lite.address_type.as_str() {
        "IPv4" => Some(false),
        "IPv6" => Some(true),
        "FQDN" => None,
        other => {
            problems.push(format!("addressType `{other}` is none of IPv4, IPv6 and FQDN"));
            None
        }
    };
    let (Some(service), Some(ipv6), false) = (service, ipv6, has_label(&lite.metadata, HEADLESS)) else {
        return Converted { change: Change::EndpointSliceGone(name), problems };
    };

    let slice = EndpointSlice {
        service: ObjectName::new(&name.namespace, service),
        name,
        ipv6,
        ports: in_one_piece(&lite.ports, |port| slice_port(port, &mut problems)),
        endpoints: in_one_piece(&lite.endpoints, |lite| endpoint(lite, ipv6, &mut problems)),
        triggered: triggered(lite, &mut problems),
    };
    Converted { change: Change::EndpointSlice(slice), problems }
}

/// What all of them become, without room for more: it is kept for long.
fn in_one_piece<T, U>(all: &[T], convert: impl FnMut(&T) -> Option<U>) -> Vec<U> {
    let mut converted = Vec::with_capacity(all.len());
    converted.extend(all.iter().filter_map(convert));
    converted
}

/// A port of a slice; none if it has no number, which is no error: such ports are for other readers of the slice.
pub(super) fn slice_port(lite: &SlicePortLite, problems: &mut Vec<String>) -> Option<SlicePort> {
    // The API server makes the empty name of none.
    let (name, number) = (lite.name.as_deref().unwrap_or_default(), lite.port.filter(|port| *port != 0)?);
    let port = match u16::try_from(number) {
        Ok(port) => port,
        Err(_) => {
            problems.push(format!("port {number} is not a port number"));
            return None;
        }
    };
    let protocol = protocol(lite.protocol.as_deref()).map_err(|problem| problems.push(problem)).ok()?;
    Some(SlicePort { name: name.into(), protocol, port })
}

fn endpoint(lite: &EndpointLite, ipv6: bool, problems: &mut Vec<String>) -> Option<Endpoint> {
    let Some(text) = &lite.address else {
        problems.push("an endpoint without an address is ignored".to_owned());
        return None;
    };
    let Some(address) = parse_ip(text).filter(|address| address.is_ipv6() == ipv6) else {
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        problems.push(format!("endpoint `{text}` is not an {family} address"));
        return None;
    };
    Some(Endpoint {
        address,
        node: lite.node_name.as_deref().map(Into::into),
        ready: lite.conditions.ready.unwrap_or(true),
        serving: lite.conditions.serving.unwrap_or(true),
        terminating: lite.conditions.terminating.unwrap_or(false),
        hints: Hints::new(names(&lite.hints.for_zones), names(&lite.hints.for_nodes)),
    })
}

fn names(hints: &[HintLite]) -> Vec<Arc<str>> {
    hints.iter().map(|hint| hint.name.as_str().into()).collect()
}

fn triggered(lite: &EndpointSliceLite, problems: &mut Vec<String>) -> Option<SystemTime> {
    let text = lite.metadata.annotations.as_ref()?.get(LAST_CHANGE)?;
    let time = text.parse::<k8s_openapi::jiff::Timestamp>();
    if time.is_err() {
        problems.push(format!("annotation {LAST_CHANGE}: `{text}` is not a time as in RFC 3339"));
    }
    time.ok().map(Into::into)
}

#[cfg(test)]
mod tests;
