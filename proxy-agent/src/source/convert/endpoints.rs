//! `v1` Endpoints, as the control plane's EndpointSlice mirroring controller makes EndpointSlices of them (KEP-752).

use super::{object_name, parse_ip, slice::slice_port};
use crate::{
    model::objects::{Endpoint, EndpointSlice, Hints, ObjectName},
    source::trimmed::{HEADLESS, LEADER, SKIP_MIRROR, TrimmedEndpointAddress, TrimmedEndpoints},
};

/// The EndpointSlices that an Endpoints object stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// Its Service: that of the same name.
    pub service: ObjectName,
    /// One of each subset and family. No object can have their names.
    pub slices: Vec<EndpointSlice>,
}

/// Converts Endpoints, or returns the reason why nothing is made of them. Also returns the parts of them that cannot be used.
pub fn endpoints(trimmed: &TrimmedEndpoints) -> (Result<Mirrored, String>, Vec<String>) {
    let service = object_name(&trimmed.metadata);
    let mut problems = Vec::new();
    let ignored = |why: &str| format!("Endpoints {service} is ignored: {why}");
    let labels = trimmed.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get(SKIP_MIRROR)).is_some_and(|value| value == "true") {
        return (Err(ignored("it has the label skip-mirror")), problems);
    }
    if labels.is_some_and(|labels| labels.contains_key(HEADLESS)) {
        return (Err(ignored("its Service is headless")), problems);
    }
    if trimmed.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER)) {
        return (Err(ignored("it is a lock of leader election")), problems);
    }
    let mut slices = Vec::new();
    for (n, subset) in trimmed.subsets.iter().enumerate() {
        let ports: Vec<_> = subset.ports.iter().filter_map(|port| slice_port(port, &mut problems)).collect();
        let ready = subset.addresses.iter().filter_map(|trimmed| endpoint(trimmed, true, &mut problems));
        let mut endpoints: Vec<Endpoint> = ready.collect();
        endpoints.extend(
            subset.not_ready_addresses.iter().filter_map(|trimmed| endpoint(trimmed, false, &mut problems)),
        );
        for ipv6 in [false, true] {
            let of_family = endpoints.iter().filter(|endpoint| endpoint.address.is_ipv6() == ipv6);
            let endpoints: Vec<Endpoint> = of_family.cloned().collect();
            if !endpoints.is_empty() {
                let family = if ipv6 { "ipv6" } else { "ipv4" };
                let name = format!("{}:endpoints-{n}-{family}", service.name);
                slices.push(EndpointSlice {
                    name: ObjectName::new(&service.namespace, &name),
                    service: service.clone(),
                    ipv6,
                    ports: ports.clone(),
                    endpoints,
                    triggered: None,
                });
            }
        }
    }
    (Ok(Mirrored { service, slices }), problems)
}

/// Whether it serves is not given, which means that it does.
fn endpoint(trimmed: &TrimmedEndpointAddress, ready: bool, problems: &mut Vec<String>) -> Option<Endpoint> {
    let Some(address) = parse_ip(&trimmed.ip) else {
        problems.push(format!("endpoint `{}` is not an address", trimmed.ip));
        return None;
    };
    Some(Endpoint {
        address,
        node: trimmed.node_name.as_deref().map(Into::into),
        ready,
        serving: true,
        terminating: false,
        hints: Hints::default(),
    })
}

#[cfg(test)]
mod tests;
