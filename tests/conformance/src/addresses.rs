//! Addresses that a Service has besides its cluster IPs, and how they are spelled.

use serde_json::json;

use super::{Expect, PORT, Rule, Step, Topic, ready};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "external-ips",
        Topic::Service,
        "externalIPs of the family are frontends with the Service's port, whether or not a node has the address; pods and nodes \
         are served on their own node.",
        |case| {
            let other = super::Case { ipv4: !case.ipv4, ..*case };
            let ips = [case.external_ip(0, 0), case.external_ip(2, 0), other.external_ip(0, 3)];
            let service = case.service().with(json!({"spec": {"externalIPs": ips}}));
            let expect = case.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new([service, case.slice(&[ready("pod-1b"), ready("pod-2a")])])
                    .probe_from(&["client", "pod-1a", "pod-3a", "node-3"], case.external(0), &expect)
                    .probe_from(&["client", "pod-1a", "pod-3a", "node-3"], case.external(2), &expect)
                    .probe_from(&["client", "pod-1a"], (other.external_ip(0, 3), PORT).into(), &Expect::Unserved),
            ]
        },
    ),
    Rule::new(
        "load-balancer-ips",
        Topic::Service,
        "Of status.loadBalancer.ingress, IPs whose ipMode is VIP or missing are frontends; those with ipMode Proxy, entries that \
         are host names and spec.loadBalancerIP are not. The ports of an entry are not read.",
        |case| {
            let ingress = json!([
                {"ip": case.load_balancer_ip(0, 0), "ports": [{"port": 1234, "protocol": "TCP"}]},
                {"ip": case.load_balancer_ip(0, 1), "ipMode": "VIP"},
                {"ip": case.load_balancer_ip(0, 2), "ipMode": "Proxy"},
                {"hostname": "lb.example.com"},
            ]);
            let service = case.service().with(json!({
                "spec": {"type": "LoadBalancer", "loadBalancerIP": case.load_balancer_ip(0, 3)},
                "status": {"loadBalancer": {"ingress": ingress}},
            }));
            let to = |n| (case.load_balancer_ip(0, n), PORT).into();
            let from = ["client", "pod-1a", "pod-3a", "node-1"];
            vec![
                Step::new([service, case.slice(&[ready("pod-2a")])])
                    .probe_from(&from, to(0), &case.answers(&["pod-2a"]))
                    .probe_from(&from, to(1), &case.answers(&["pod-2a"]))
                    .probe_from(&from, to(2), &Expect::Unserved)
                    .probe_from(&from, to(3), &Expect::Unserved),
            ]
        },
    ),
    Rule::new(
        "leading-zeros",
        Topic::Service,
        "Leading zeros in IPv4 addresses and prefixes are dropped and the rest read as decimal, as Kubernetes always did.",
        leading_zeros,
    )
    .ipv4_only(),
    Rule::new(
        "bad-addresses",
        Topic::Service,
        "A wrong address or range is dropped alone, with a log line; the rest of the Service works.",
        |case| {
            let service = case.exposed().with(json!({
                "spec": {
                    "externalIPs": ["999.1.1.1", "no address", case.external_ip(0, 0)],
                    "loadBalancerSourceRanges": ["10.0.0.0/99", format!("{}/{}", super::address("client", case.ipv4), if case.ipv4 { 32 } else { 128 })],
                },
                "status": {"loadBalancer": {"ingress": [{"ip": "::g"}, {"ip": case.load_balancer_ip(0, 0)}]}},
            }));
            vec![
                Step::new([service, case.slice(&[ready("pod-1b")])])
                    .probe("pod-1a", case.vip(), case.answers(&["pod-1b"]))
                    .probe_from(&["client", "pod-1a"], case.external(0), &case.answers(&["pod-1b"]))
                    .probe("client", case.load_balancer(0), case.answers(&["pod-1b"]))
                    .probe("node-1", case.load_balancer(0), Expect::Denied),
            ]
        },
    ),
];

fn leading_zeros(case: &super::Case) -> Vec<Step> {
    let padded = |text: String| {
        let octets = text.split('.').map(|octet| format!("{octet:0>3}"));
        octets.collect::<Vec<_>>().join(".")
    };
    let ip = padded(case.ip(0).to_string());
    let range = format!("{}/032", padded(super::address("client", true).to_string()));
    let service = case.exposed().with(json!({"spec": {
        "clusterIP": ip,
        "clusterIPs": [ip],
        "externalIPs": [padded(case.external_ip(0, 0).to_string())],
        "loadBalancerSourceRanges": [range],
    }}));
    vec![
        Step::new([service, case.slice(&[ready("pod-1b")])])
            .probe("pod-1a", case.vip(), case.answers(&["pod-1b"]))
            .probe("client", case.external(0), case.answers(&["pod-1b"]))
            .probe("client", case.load_balancer(0), case.answers(&["pod-1b"]))
            .probe("node-1", case.load_balancer(0), Expect::Denied),
    ]
}
