//! Services.

use std::{net::IpAddr, time::Duration};

use super::{Converted, has_label, object_name, parse_all, parse_cidr, parse_ip, protocol};
use crate::{
    model::objects::{Change, Service, ServicePort, TrafficPolicy},
    source::trimmed::{SERVICE_PROXY_NAME, TrimmedService, TrimmedServicePort, TrimmedServiceSpec},
};

/// The value of `clusterIP` of a headless Service.
const NONE: &str = "None";
/// Three hours: the API server's default of `timeoutSeconds`.
const DEFAULT_AFFINITY: u64 = 10_800;
/// A day: the longest that the API allows.
const LONGEST_AFFINITY: u64 = 86_400;

/// Converts a Service. One that the proxy does not serve (ExternalName, headless, another proxy's) is gone.
pub fn service(trimmed: &TrimmedService) -> Converted {
    let name = object_name(&trimmed.metadata);
    let spec = &trimmed.spec;
    let kind = spec.r#type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("ClusterIP");
    let addresses = clusters(spec);
    let headless = addresses.first().is_some_and(|address| address == NONE);
    if kind == "ExternalName" || headless || has_label(&trimmed.metadata, SERVICE_PROXY_NAME) {
        return Converted { change: Change::ServiceGone(name), problems: Vec::new() };
    }

    let problems = &mut Vec::new();
    let cluster_ips = cluster_ips(spec, problems);
    if cluster_ips.is_empty() && addresses.iter().all(String::is_empty) {
        problems.push("it has no clusterIP, so nothing is served (nodePorts included)".to_owned());
    }
    let ports = ports(spec, problems);
    let internal_policy = policy("internalTrafficPolicy", spec.internal_traffic_policy.as_deref(), problems);
    let external_policy = policy("externalTrafficPolicy", spec.external_traffic_policy.as_deref(), problems);
    let is_external = match kind {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !spec.external_ips.is_empty(),
        other => {
            problems.push(format!("type `{other}` is unknown; it is served like ClusterIP"));
            false
        }
    };
    let external_policy = if is_external { external_policy } else { TrafficPolicy::Cluster };
    let ingress = trimmed.status.load_balancer.ingress.iter();
    let vips = ingress
        .filter(|ingress| matches!(ingress.ip_mode.as_deref(), None | Some("VIP")))
        .filter_map(|ingress| ingress.ip.as_ref().filter(|ip| !ip.is_empty()));

    let service = Service {
        cluster_ips,
        ports,
        internal_policy,
        external_policy,
        external_ips: parse_all(&spec.external_ips, parse_ip, ("externalIP", "an IP address"), problems),
        load_balancer_ips: parse_all(vips, parse_ip, ("load balancer address", "an IP address"), problems),
        source_ranges: source_ranges(&spec.load_balancer_source_ranges, problems),
        affinity: affinity(spec, problems),
        health_check_node_port: health_check_node_port(spec, problems)
            .filter(|_| kind == "LoadBalancer" && external_policy == TrafficPolicy::Local),
        name,
    };
    Converted { change: Change::Service(service), problems: std::mem::take(problems) }
}

/// The addresses as given. The API server fills `clusterIPs` from `clusterIP`; people need not.
fn clusters(spec: &TrimmedServiceSpec) -> &[String] {
    if spec.cluster_ips.is_empty() { spec.cluster_ip.as_slice() } else { &spec.cluster_ips }
}

/// At most one address per family: that of the same place in `ipFamilies`. Where these are not given (by people and old
/// API servers) `clusterIP` alone counts. A family without an address is not served at all.
fn cluster_ips(spec: &TrimmedServiceSpec, problems: &mut Vec<String>) -> Vec<IpAddr> {
    let listed = clusters(spec);
    let mut found: Vec<IpAddr> = Vec::with_capacity(listed.len().max(1));
    let mut add = |text: &str, wanted: Option<&str>| {
        let Some(address) = parse_ip(text) else {
            problems.push(format!("clusterIP `{text}` is not an IP address"));
            return;
        };
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        if wanted.is_some_and(|wanted| wanted != family) {
            problems.push(format!("clusterIP `{text}` is not of the family in ipFamilies"));
        } else if found.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
            problems.push(format!("clusterIP `{text}` is a second {family} address"));
        } else {
            found.push(address);
        }
    };

    let is_set = |text: &&String| !text.is_empty() && *text != NONE;
    if spec.ip_families.is_empty() {
        let first = spec.cluster_ip.as_ref().filter(is_set).or(listed.first());
        first.filter(is_set).into_iter().for_each(|text| add(text, None));
    } else {
        let pairs = listed.iter().zip(&spec.ip_families);
        pairs.filter(|(text, _)| is_set(text)).for_each(|(text, family)| add(text, Some(family)));
    }
    found
}

fn ports(spec: &TrimmedServiceSpec, problems: &mut Vec<String>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(spec.ports.len());
    for trimmed in &spec.ports {
        match port(trimmed) {
            Ok(port) if ports.iter().any(|p| (&p.name, p.protocol) == (&port.name, port.protocol)) => {
                problems.push(format!("a second {} port named {:?} is ignored", port.protocol, port.name));
            }
            Ok(port) => ports.push(port),
            Err(problem) => problems.push(problem),
        }
    }
    ports
}

fn port(trimmed: &TrimmedServicePort) -> Result<ServicePort, String> {
    let name = trimmed.name.as_deref().unwrap_or_default();
    let number = |field, value: i64| {
        u16::try_from(value).map_err(|_| format!("{field} {value} of port {name:?} is not a port number"))
    };
    let node_port = number("nodePort", trimmed.node_port.unwrap_or(0))?;
    Ok(ServicePort {
        name: name.into(),
        protocol: protocol(trimmed.protocol.as_deref())?,
        port: match number("port", trimmed.port.unwrap_or(0))? {
            0 => return Err(format!("port {name:?} has no number")),
            port => port,
        },
        node_port: (node_port != 0).then_some(node_port),
    })
}

fn policy(field: &str, value: Option<&str>, problems: &mut Vec<String>) -> TrafficPolicy {
    match value {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            problems.push(format!("{field} `{other}` is neither Cluster nor Local; Cluster is used"));
            TrafficPolicy::Cluster
        }
    }
}

/// None where no range is given. Where none of those given can be read, no client is allowed: their author did not
/// mean everyone.
fn source_ranges(texts: &[String], problems: &mut Vec<String>) -> Option<Vec<ipnet::IpNet>> {
    if texts.is_empty() {
        return None;
    }
    let ranges = parse_all(texts, parse_cidr, ("loadBalancerSourceRange", "a CIDR"), problems);
    if ranges.is_empty() {
        problems.push(
            "none of loadBalancerSourceRanges is a CIDR: the load balancer denies all clients".to_owned(),
        );
    }
    Some(ranges)
}

fn affinity(spec: &TrimmedServiceSpec, problems: &mut Vec<String>) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            problems.push(format!("sessionAffinity `{other}` is neither None nor ClientIP; None is used"));
            return None;
        }
    }
    let Some(given) = spec.session_affinity_config.client_ip.timeout_seconds else {
        return Some(Duration::from_secs(DEFAULT_AFFINITY));
    };
    let seconds = u64::try_from(given).unwrap_or(0).clamp(1, LONGEST_AFFINITY);
    if i64::try_from(seconds) != Ok(given) {
        problems
            .push(format!("timeoutSeconds {given} is not within 1 to {LONGEST_AFFINITY}; {seconds} is used"));
    }
    Some(Duration::from_secs(seconds))
}

fn health_check_node_port(spec: &TrimmedServiceSpec, problems: &mut Vec<String>) -> Option<u16> {
    let given = spec.health_check_node_port.filter(|port| *port != 0)?;
    let port = u16::try_from(given).ok();
    if port.is_none() {
        problems.push(format!("healthCheckNodePort {given} is not a port number"));
    }
    port
}

#[cfg(test)]
mod tests;
