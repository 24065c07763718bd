//! From the API's objects to the model's: the one place that knows how the API spells things.
//!
//! A wrong part is dropped alone and named in [`Converted::problems`]; the rest of the object works.

use std::net::{IpAddr, Ipv4Addr};

use kube::core::ObjectMeta;

use super::lite::{EndpointLite, EndpointSliceLite, NodeLite, ServiceLite, ServicePortLite, SlicePortLite};
use crate::model::{
    objects::{
        Change, Endpoint, EndpointSlice, Hints, Node, ObjectName, Protocol, Service, ServicePort, SlicePort,
        TrafficPolicy,
    },
    plan::IpFamily,
};

/// Presence of this label, whatever its value, gives a Service to another proxy.
pub const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Presence of this label says that an EndpointSlice belongs to a headless Service.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// Names the Service of an EndpointSlice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A change, and what of the object could not be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Converted {
    /// What is, after all.
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

/// Converts a Service. One that the proxy does not serve (ExternalName, headless, another proxy's) is gone.
pub fn service(lite: &ServiceLite) -> Converted {
    let name = object_name(&lite.metadata);
    let spec = &lite.spec;
    let kind = spec.r#type.as_deref().unwrap_or("ClusterIP");
    let addresses = || spec.cluster_ip.iter().chain(&spec.cluster_ips);
    let headless = addresses().any(|address| address == "None");
    if kind == "ExternalName" || headless || has_label(&lite.metadata, SERVICE_PROXY_NAME) {
        return Converted { change: Change::ServiceGone(name), problems: Vec::new() };
    }

    let mut problems = Vec::new();
    let cluster_ips = cluster_ips(lite, &mut problems);
    if cluster_ips.is_empty() && addresses().all(|address| address.is_empty()) {
        problems.push("it has no clusterIP, so there is nothing to serve (nodePorts included)".to_owned());
    }

    let mut ports: Vec<ServicePort> = Vec::with_capacity(spec.ports.len());
    for lite in &spec.ports {
        match service_port(lite) {
            Ok(port) if ports.iter().any(|p| (&p.name, p.protocol) == (&port.name, port.protocol)) => {
                problems.push(format!("a second {} port named {:?} is ignored", port.protocol, port.name));
            }
            Ok(port) => ports.push(port),
            Err(problem) => problems.push(problem),
        }
    }

    let mut policy = |field, value: &Option<String>| match value.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.push(format!("{field} `{other}` is neither Cluster nor Local; Cluster is used"));
            TrafficPolicy::Cluster
        }
    };
    let internal_policy = policy("internalTrafficPolicy", &spec.internal_traffic_policy);
    let external_policy = policy("externalTrafficPolicy", &spec.external_traffic_policy);
    let has_external_policy = matches!(kind, "NodePort" | "LoadBalancer") || !spec.external_ips.is_empty();

    let service = Service {
        name,
        cluster_ips,
        ports,
        internal_policy,
        external_policy: if has_external_policy { external_policy } else { TrafficPolicy::Cluster },
        ..Service::default()
    };
    Converted { change: Change::Service(service), problems }
}

/// At most one address per family, as the API server pairs `clusterIPs` and `ipFamilies`.
fn cluster_ips(lite: &ServiceLite, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let spec = &lite.spec;
    // Objects from an API server have both fields; people may write either.
    let listed = if spec.cluster_ips.is_empty() { spec.cluster_ip.as_slice() } else { &spec.cluster_ips };
    let mut found: Vec<IpAddr> = Vec::new();
    for (n, text) in listed.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let Some(address) = parse_ip(text) else {
            problems.push(format!("clusterIP `{text}` is not an IP address"));
            continue;
        };
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if spec.ip_families.get(n).is_some_and(|wanted| wanted != family) {
            problems.push(format!("clusterIP `{text}` is not of the family that ipFamilies says"));
        } else if found.iter().any(|other| IpFamily::of(other) == IpFamily::of(&address)) {
            problems.push(format!("clusterIP `{text}` is a second {family} address"));
        } else {
            found.push(address);
        }
    }
    found
}

fn service_port(lite: &ServicePortLite) -> Result<ServicePort, String> {
    let name = lite.name.as_deref().unwrap_or_default();
    let number = |field, value: i64| {
        u16::try_from(value).map_err(|_| format!("{field} {value} of port {name:?} is not a port number"))
    };
    let node_port = number("nodePort", lite.node_port.unwrap_or(0))?;
    Ok(ServicePort {
        name: name.into(),
        protocol: protocol(lite.protocol.as_deref())?,
        port: match number("port", lite.port.unwrap_or(0))? {
            0 => return Err(format!("port {name:?} has no number")),
            port => port,
        },
        node_port: (node_port != 0).then_some(node_port),
    })
}

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

    let ports = lite.ports.iter().filter_map(|port| slice_port(port, &mut problems)).collect();
    let endpoints = lite.endpoints.iter().filter_map(|lite| endpoint(lite, ipv6, &mut problems)).collect();
    let service = ObjectName::new(&name.namespace, service);
    Converted {
        change: Change::EndpointSlice(EndpointSlice {
            name,
            service,
            ipv6,
            ports,
            endpoints,
            ..EndpointSlice::default()
        }),
        problems,
    }
}

fn slice_port(lite: &SlicePortLite, problems: &mut Vec<String>) -> Option<SlicePort> {
    // Neither is an error: such ports are for other readers of the slice.
    let (name, number) = (lite.name.as_deref()?, lite.port.filter(|port| *port != 0)?);
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
    let Some(text) = lite.addresses.first() else {
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
        hints: Hints::default(),
    })
}

/// Converts this node.
pub fn node(lite: &NodeLite) -> Converted {
    let listed = &lite.status.addresses;
    let of = |kind: &'static str| listed.iter().filter(move |address| address.r#type == kind);
    let mut problems = Vec::new();
    let mut addresses = Vec::new();
    for text in of("InternalIP").chain(of("ExternalIP")).map(|address| &address.address) {
        match parse_ip(text) {
            Some(address) => addresses.push(address),
            None => problems.push(format!("address `{text}` is not an IP address")),
        }
    }
    Converted { change: Change::Node(Node { addresses, ..Node::default() }), problems }
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("protocol `{other}` is none of TCP, UDP and SCTP")),
    }
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn has_label(metadata: &ObjectMeta, key: &str) -> bool {
    label(metadata, key).is_some()
}

/// Parses an address as Kubernetes always did: leading zeros of IPv4 are decimal, v4-mapped IPv6 is IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let digits =
            parts.next().filter(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = digits.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

#[cfg(test)]
mod tests;
