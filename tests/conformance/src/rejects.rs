//! How packets without an endpoint are answered.

use serde_json::json;

use super::{Expect, PORT, Protocol, Rule, Step, Topic, ready};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "no-endpoints",
        Topic::Rejects,
        "A service without endpoints refuses, on every frontend: the client gets ECONNREFUSED (sockets at once, packets by ICMP \
         port unreachable) within 3 s, for TCP too.",
        |case| {
            let step = Step::new([case.exposed(), case.slice(&[])]);
            let step = step.probe_from(&["pod-1a", "node-1"], case.vip(), &Expect::Refused);
            vec![case.outside_frontends(0).into_iter().fold(step, |step, to| {
                step.probe_from(&["client", "pod-1a", "node-1"], to, &Expect::Refused)
            })]
        },
    ),
    Rule::new(
        "no-slices",
        Topic::Rejects,
        "A service without any EndpointSlice is one without endpoints.",
        |case| {
            vec![
                Step::new([case.node_port_service()])
                    .probe_from(&["pod-1a", "node-1"], case.vip(), &Expect::Refused)
                    .probe("client", case.at_node(1), Expect::Refused),
            ]
        },
    ),
    Rule::new(
        "evicted",
        Topic::Rejects,
        "A service whose last endpoint goes refuses from then on, and serves again when one comes.",
        |case| {
            let objects = |endpoints: &[_]| [case.node_port_service(), case.slice(endpoints)];
            let served = |pod| {
                Step::new(objects(&[ready(pod)]))
                    .probe_from(&["pod-1a", "node-2"], case.vip(), &case.answers(&[pod]))
                    .probe("client", case.at_node(0), case.answers(&[pod]))
            };
            vec![
                served("pod-1b"),
                Step::new(objects(&[super::unready("pod-1b")]))
                    .probe_from(&["pod-1a", "node-2"], case.vip(), &Expect::Refused)
                    .probe("client", case.at_node(0), Expect::Refused),
                served("pod-2a"),
            ]
        },
    ),
    Rule::new(
        "undefined-port",
        Topic::Rejects,
        "A port of a cluster IP that the Service does not have, or not for this protocol, is rejected for pods and nodes.",
        |case| {
            let service = case.service().with(json!({"spec": {"ports": [super::port("tcp", "TCP", PORT)]}}));
            vec![
                Step::new([service, case.slice(&[ready("pod-1b")])])
                    .probe_from(&["pod-1a", "node-1"], (case.ip(0), 4444).into(), &Expect::Refused)
                    .probe_by(&[Protocol::Udp], "pod-1a", case.vip(), Expect::Refused)
                    .probe_by(&[Protocol::Tcp], "pod-1a", case.vip(), case.answers(&["pod-1b"])),
            ]
        },
    ),
    Rule::new(
        "undefined-port-elsewhere",
        Topic::Rejects,
        "Ports of external and load balancer IPs that the Service does not have are not touched: the address may be a machine's own.",
        |case| {
            let to = |ip| (ip, 4444).into();
            vec![
                Step::new([case.exposed(), case.slice(&[ready("pod-1b")])])
                    .probe_from(&["pod-1a", "client"], to(case.external_ip(0, 0)), &Expect::Unserved)
                    .probe_from(&["pod-1a", "client"], to(case.load_balancer_ip(0, 0)), &Expect::Unserved),
            ]
        },
    ),
    Rule::new(
        "ping",
        Topic::Rejects,
        "A cluster IP of a service answers pings from inside.",
        |case| {
            let step = Step::new([case.exposed(), case.slice(&[ready("pod-1b")])]);
            vec![
                ["pod-1a", "pod-3a", "node-1"].into_iter().fold(step, |step, from| {
                    step.probe_by(&[Protocol::Ping], from, case.vip(), Expect::Echo)
                }),
            ]
        },
    )
    .deviates(
        "kube-proxy rejects pings to a cluster IP as it does undefined ports. Users ping service addresses to see \
         whether they exist; a reply shows just that.",
    ),
    Rule::new(
        "unallocated-address",
        Topic::Rejects,
        "An address in a ServiceCIDR that no Service has is dropped, and does not loop between node and router.",
        |case| {
            vec![
                Step::new([case.service(), case.slice(&[ready("pod-1b")])])
                    .probe_from(&["pod-1a", "node-1"], (case.ip(9), PORT).into(), &Expect::Dropped)
                    .probe_by(&[Protocol::Ping], "pod-1a", (case.ip(9), PORT).into(), Expect::Dropped),
            ]
        },
    )
    .deviates(
        "Dropped only where it would leave the node by an uplink, so that Services of another proxy (service-proxy-name) live \
         on the same addresses.",
    ),
    Rule::by_tests(
        "reject-with-reset",
        Topic::Rejects,
        "Rejects are ICMP port unreachable by default; --reject tcp-reset answers TCP with a reset, which Linux clients notice at \
         once.",
        &["proxy-tests: packet_rejected_with_reset"],
    ),
    Rule::by_tests(
        "rejects-are-limited",
        Topic::Rejects,
        "Rejects are sent at a limited rate, as the kernel's own ICMP errors are.",
        &["proxy-tests: packet_rejects_are_limited"],
    ),
];
