//! Why each endpoint of a Service is used on this node, or not. Pure; the decision itself is [`Candidates`]'.

use std::{net::SocketAddr, sync::Arc};

use super::{
    endpoints::Candidates,
    objects::{Endpoint, EndpointSlice, Protocol, Service, TrafficPolicy},
    plan::IpFamily,
    planner::NodeContext,
};

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The port's name, possibly empty.
    pub port: Arc<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// The node it runs on, when known.
    pub node: Option<Arc<str>>,
    /// Clients of cluster IPs get it.
    pub internal: bool,
    /// Clients outside get it.
    pub external: bool,
    /// Pods and this node get it by other frontends than cluster IPs.
    pub cluster: bool,
    /// In words.
    pub why: String,
}

/// The endpoints of all ports of a Service in all its families, and the parts of its slices that are for none of them.
pub fn explain<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node_context: NodeContext<'a>,
) -> (Vec<Explained>, Vec<String>) {
    let mut all = Vec::new();
    for family in service.cluster_ips.iter().map(IpFamily::of) {
        for port in &service.ports {
            let candidates = Candidates::gather(slices.clone(), port, family, node_context);
            let cluster = candidates.cluster();
            let local = candidates.local();
            let under = |policy| match policy {
                TrafficPolicy::Cluster => &cluster,
                TrafficPolicy::Local => &local,
            };
            let has_external = port.node_port.is_some()
                || !service.external_ips.is_empty()
                || !service.load_balancer_ips.is_empty();
            let internal = under(service.internal_policy);
            let external = if has_external { under(service.external_policy) } else { &cluster };
            let has_ready = candidates.found.iter().any(|(_, endpoint)| endpoint.ready);
            all.extend(candidates.found.iter().map(|(address, endpoint)| {
                let mut explained = Explained {
                    port: port.name.clone(),
                    protocol: port.protocol,
                    endpoint: *address,
                    node: endpoint.node.clone(),
                    internal: internal.contains(address),
                    external: external.contains(address),
                    cluster: cluster.contains(address),
                    why: String::new(),
                };
                explained.why = why(
                    service,
                    endpoint,
                    &explained,
                    candidates.is_local(endpoint),
                    has_ready,
                    node_context,
                );
                explained
            }));
        }
    }
    (all, unused_slices(service, slices))
}

fn why(
    service: &Service,
    endpoint: &Endpoint,
    explained: &Explained,
    is_local: bool,
    has_ready: bool,
    node_context: NodeContext<'_>,
) -> String {
    let Explained { internal, external, cluster, .. } = *explained;
    let is_used = internal || external || cluster;
    let condition = match (endpoint.ready, endpoint.serving, endpoint.terminating) {
        (true, ..) => "ready",
        (_, true, true) if is_used => "terminating, and used because it serves and no other is ready",
        (_, true, true) => return "terminating: it keeps the connections it has".to_owned(),
        (_, true, false) => return "not ready: it keeps the connections it has".to_owned(),
        (_, false, true) => return "terminating, and does not serve any more".to_owned(),
        _ => return "not ready".to_owned(),
    };
    let mut reasons = vec![condition.to_owned()];
    if endpoint.ready && !cluster {
        let names = |kind: &str, names: &[Arc<str>]| {
            (!names.is_empty()).then(|| format!("{kind} {}", names.join(", ")))
        };
        let hints = &endpoint.hints;
        let named: Vec<String> =
            [names("zone", hints.zones()), names("node", hints.nodes())].into_iter().flatten().collect();
        let zone =
            node_context.zone.map_or_else(|| "in no zone".to_owned(), |zone| format!("in zone {zone}"));
        reasons.push(format!("topology hints name {}, and this node is {zone}", named.join(" and ")));
    } else if !endpoint.ready && !cluster && has_ready {
        reasons.push("only for clients of policy Local: other nodes have ready ones".to_owned());
    }
    let node = endpoint.node.as_deref().unwrap_or("unknown");
    for (is_in, policy, name) in [
        (internal, service.internal_policy, "internalTrafficPolicy"),
        (external, service.external_policy, "externalTrafficPolicy"),
    ] {
        if policy == TrafficPolicy::Local && !is_in && !is_local {
            reasons.push(format!("{name} is Local, and it runs on node {node}"));
        }
    }
    reasons.join("; ")
}

/// Slices that no port of the Service takes endpoints from.
fn unused_slices<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<String> {
    let unused = |slice: &EndpointSlice| {
        let family = if slice.ipv6 { "IPv6" } else { "IPv4" };
        if !service.cluster_ips.iter().any(|ip| ip.is_ipv6() == slice.ipv6) {
            return Some(format!("EndpointSlice {}: the Service has no {family} address", slice.name));
        }
        let is_known = |name: &str, protocol| {
            service.ports.iter().any(|port| *port.name == *name && port.protocol == protocol)
        };
        if slice.ports.iter().any(|port| is_known(&port.name, port.protocol)) {
            return None;
        }
        let ports = slice.ports.iter().map(|port| format!("`{}` ({})", port.name, port.protocol));
        let ports: Vec<String> = ports.collect();
        Some(format!("EndpointSlice {}: the Service has none of its ports: {}", slice.name, ports.join(", ")))
    };
    slices.filter_map(unused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::objects::{Hints, ObjectName, ServicePort, SlicePort};

    fn service(internal_policy: TrafficPolicy, external_policy: TrafficPolicy) -> Service {
        Service {
            name: ObjectName::new("default", "web"),
            cluster_ips: vec!["10.96.0.10".parse().unwrap()],
            ports: vec![ServicePort {
                name: "a".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30_080),
            }],
            internal_policy,
            external_policy,
            ..Service::default()
        }
    }

    /// Words: `here`, `there`, `notready`, `terminating`, `gone` (terminating, not serving), `zone=`.
    fn endpoint(number: u8, text: &str) -> Endpoint {
        let has = |word: &str| text.split(' ').any(|other| other == word);
        let is_leaving = has("terminating") || has("gone");
        let zones = text.split(' ').filter_map(|word| word.strip_prefix("zone=")).map(Into::into).collect();
        Endpoint {
            address: [10, 244, 0, number].into(),
            node: Some(if has("here") { "here" } else { "there" }.into()),
            ready: !is_leaving && !has("notready"),
            serving: !has("gone") && !has("notready"),
            terminating: is_leaving,
            hints: Hints::new(zones, Vec::new()),
        }
    }

    fn slice(endpoints: &[&str], port: &str, ipv6: bool) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("default", "web-1"),
            service: ObjectName::new("default", "web"),
            ipv6,
            ports: vec![SlicePort { name: port.into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: (1..).zip(endpoints).map(|(number, text)| endpoint(number, text)).collect(),
            triggered: None,
        }
    }

    #[test]
    fn each_endpoint_has_its_reason() {
        use TrafficPolicy::{Cluster, Local};
        let node_context = NodeContext { node: "here", zone: Some("a"), addresses: &[] };
        for (internal, external, endpoints, expected) in [
            (
                Cluster,
                Cluster,
                &["here", "there", "there notready"][..],
                &["ready", "ready", "not ready"][..],
            ),
            (
                Cluster,
                Cluster,
                &["here", "here terminating", "here gone"],
                &["ready", "keeps the connections", "does not serve"],
            ),
            (Cluster, Cluster, &["there terminating"], &["no other is ready"]),
            (
                Local,
                Cluster,
                &["here", "there"],
                &["ready", "internalTrafficPolicy is Local, and it runs on node there"],
            ),
            (Cluster, Local, &["there"], &["externalTrafficPolicy is Local"]),
            (
                Cluster,
                Cluster,
                &["here zone=a", "there zone=b"],
                &["ready", "hints name zone b, and this node is in zone a"],
            ),
        ] {
            let slices = [slice(endpoints, "a", false)];
            let (all, unused) = explain(&service(internal, external), slices.iter(), node_context);
            let found: Vec<&str> = all.iter().map(|explained| explained.why.as_str()).collect();
            assert!(unused.is_empty() && found.len() == expected.len(), "{found:?}");
            for (why, part) in found.iter().zip(expected) {
                assert!(why.contains(part), "{endpoints:?}: {why}, not {part}");
            }
        }
    }

    #[test]
    fn the_explanation_agrees_with_the_plan() {
        use TrafficPolicy::{Cluster, Local};
        let node_context = NodeContext { node: "here", zone: Some("a"), addresses: &[] };
        let words = [
            "here",
            "there",
            "here terminating",
            "there notready",
            "there zone=b",
            "here zone=a",
            "there terminating",
        ];
        for (internal, external) in [(Cluster, Cluster), (Local, Cluster), (Cluster, Local), (Local, Local)] {
            for subset in 0u32..1 << words.len() {
                let chosen: Vec<&str> = (0..)
                    .zip(words)
                    .filter(|(bit, _)| subset & 1 << bit != 0)
                    .map(|(_, word)| word)
                    .collect();
                let slices = [slice(&chosen, "a", false)];
                let service = service(internal, external);
                let plan = &super::super::planner::plan(&service, slices.iter(), node_context).ports[0];
                for explained in explain(&service, slices.iter(), node_context).0 {
                    let is_in = |list: &[SocketAddr]| list.contains(&explained.endpoint);
                    assert_eq!(
                        (explained.internal, explained.external, explained.cluster),
                        (is_in(&plan.internal), is_in(&plan.external), is_in(&plan.cluster)),
                        "{chosen:?}: {explained:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn slices_that_no_port_uses() {
        let service = service(TrafficPolicy::Cluster, TrafficPolicy::Cluster);
        let slices =
            [slice(&["here"], "b", false), slice(&["here"], "a", true), slice(&["here"], "a", false)];
        let (all, unused) = explain(&service, slices.iter(), NodeContext::default());
        assert_eq!((all.len(), unused.len()), (1, 2));
        assert!(unused[0].contains("none of its ports: `b` (TCP)"), "{unused:?}");
        assert!(unused[1].contains("no IPv6 address"), "{unused:?}");
    }
}
