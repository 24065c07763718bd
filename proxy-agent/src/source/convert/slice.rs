//! EndpointSlices.

use std::{sync::Arc, time::SystemTime};

use super::{Converted, has_label, label, object_name, parse_ip, protocol};
use crate::{
    model::objects::{Change, Endpoint, EndpointSlice, Hints, ObjectName, SlicePort},
    source::trimmed::{
        HEADLESS, LAST_CHANGE, SERVICE_NAME, TrimmedEndpoint, TrimmedEndpointSlice, TrimmedHint,
        TrimmedSlicePort,
    },
};

/// Converts an EndpointSlice. One of no Service, of a headless one, or of host names is gone.
pub fn endpoint_slice(trimmed: &TrimmedEndpointSlice) -> Converted {
    let name = object_name(&trimmed.metadata);
    let mut problems = Vec::new();
    let service = label(&trimmed.metadata, SERVICE_NAME).filter(|service| !service.is_empty());
    let ipv6 = match trimmed.address_type.as_str() {
        "IPv4" => Some(false),
        "IPv6" => Some(true),
        "FQDN" => None,
        other => {
            problems.push(format!("addressType `{other}` is not IPv4, IPv6 or FQDN"));
            None
        }
    };
    let (Some(service), Some(ipv6), false) = (service, ipv6, has_label(&trimmed.metadata, HEADLESS)) else {
        return Converted { change: Change::EndpointSliceGone(name), problems };
    };

    let slice = EndpointSlice {
        service: ObjectName::new(&name.namespace, service),
        name,
        ipv6,
        ports: in_one_piece(&trimmed.ports, |port| slice_port(port, &mut problems)),
        endpoints: in_one_piece(&trimmed.endpoints, |trimmed| endpoint(trimmed, ipv6, &mut problems)),
        triggered: triggered(trimmed, &mut problems),
    };
    Converted { change: Change::EndpointSlice(slice), problems }
}

/// The converted items, without spare capacity: they are kept for long.
fn in_one_piece<T, U>(all: &[T], convert: impl FnMut(&T) -> Option<U>) -> Vec<U> {
    let mut converted = Vec::with_capacity(all.len());
    converted.extend(all.iter().filter_map(convert));
    converted
}

/// A port of a slice; `None` without a number, which is not an error: such ports are for other readers of the slice.
pub(super) fn slice_port(trimmed: &TrimmedSlicePort, problems: &mut Vec<String>) -> Option<SlicePort> {
    // The API server stores a missing name as an empty one.
    let (name, number) =
        (trimmed.name.as_deref().unwrap_or_default(), trimmed.port.filter(|port| *port != 0)?);
    let port = match u16::try_from(number) {
        Ok(port) => port,
        Err(_) => {
            problems.push(format!("port {number} is not a port number"));
            return None;
        }
    };
    let protocol = protocol(trimmed.protocol.as_deref()).map_err(|problem| problems.push(problem)).ok()?;
    Some(SlicePort { name: name.into(), protocol, port })
}

fn endpoint(trimmed: &TrimmedEndpoint, ipv6: bool, problems: &mut Vec<String>) -> Option<Endpoint> {
    let Some(text) = &trimmed.address else {
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
        node: trimmed.node_name.as_deref().map(Into::into),
        ready: trimmed.conditions.ready.unwrap_or(true),
        serving: trimmed.conditions.serving.unwrap_or(true),
        terminating: trimmed.conditions.terminating.unwrap_or(false),
        hints: Hints::new(names(&trimmed.hints.for_zones), names(&trimmed.hints.for_nodes)),
    })
}

fn names(hints: &[TrimmedHint]) -> Vec<Arc<str>> {
    hints.iter().map(|hint| hint.name.as_str().into()).collect()
}

fn triggered(trimmed: &TrimmedEndpointSlice, problems: &mut Vec<String>) -> Option<SystemTime> {
    let text = trimmed.metadata.annotations.as_ref()?.get(LAST_CHANGE)?;
    let time = text.parse::<k8s_openapi::jiff::Timestamp>();
    if time.is_err() {
        problems.push(format!("annotation {LAST_CHANGE}: `{text}` is not a time as in RFC 3339"));
    }
    time.ok().map(Into::into)
}

#[cfg(test)]
mod tests;
