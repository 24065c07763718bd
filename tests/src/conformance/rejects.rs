//! What happens when nobody can answer.

use serde_json::json;

use super::{Expect, PORT, Protocol, Rule, Step, Topic, ready};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "no-endpoints",
        Topic::Rejects,
        "A service without endpoints refuses, on every frontend: the client learns ECONNREFUSED (sockets at once, packets by ICMP \
         port unreachable) within 3 s, for TCP too.",
        |site| {
            let step = Step::new([site.exposed(), site.slice(&[])]);
            let step = step.probe_from(&["pod-1a", "node-1"], site.vip(), &Expect::Refused);
            vec![site.outside_frontends(0).into_iter().fold(step, |step, to| {
                step.probe_from(&["client", "pod-1a", "node-1"], to, &Expect::Refused)
            })]
        },
    ),
    Rule::new(
        "no-slices",
        Topic::Rejects,
        "A service without any EndpointSlice is one without endpoints.",
        |site| {
            vec![
                Step::new([site.node_port_service()])
                    .probe_from(&["pod-1a", "node-1"], site.vip(), &Expect::Refused)
                    .probe("client", site.at_node(1), Expect::Refused),
            ]
        },
    ),
    Rule::new(
        "evicted",
        Topic::Rejects,
        "A service whose last endpoint goes refuses from then on, and serves again when one comes.",
        |site| {
            let objects = |endpoints: &[_]| [site.node_port_service(), site.slice(endpoints)];
            let served = |pod| {
                Step::new(objects(&[ready(pod)]))
                    .probe_from(&["pod-1a", "node-2"], site.vip(), &site.answers(&[pod]))
                    .probe("client", site.at_node(0), site.answers(&[pod]))
            };
            vec![
                served("pod-1b"),
                Step::new(objects(&[super::unready("pod-1b")]))
                    .probe_from(&["pod-1a", "node-2"], site.vip(), &Expect::Refused)
                    .probe("client", site.at_node(0), Expect::Refused),
                served("pod-2a"),
            ]
        },
    ),
    Rule::new(
        "undefined-port",
        Topic::Rejects,
        "A port of a cluster IP that the Service does not have, or not for this protocol, is refused for pods and nodes.",
        |site| {
            let service = site.service().with(json!({"spec": {"ports": [super::port("tcp", "TCP", PORT)]}}));
            vec![
                Step::new([service, site.slice(&[ready("pod-1b")])])
                    .probe_from(&["pod-1a", "node-1"], (site.ip(0), 4444).into(), &Expect::Refused)
                    .probe_by(&[Protocol::Udp], "pod-1a", site.vip(), Expect::Refused)
                    .probe_by(&[Protocol::Tcp], "pod-1a", site.vip(), site.answers(&["pod-1b"])),
            ]
        },
    ),
    Rule::new(
        "undefined-port-elsewhere",
        Topic::Rejects,
        "Ports of external and load balancer IPs that the Service does not have are not touched: the address may be a machine's own.",
        |site| {
            let to = |ip| (ip, 4444).into();
            vec![
                Step::new([site.exposed(), site.slice(&[ready("pod-1b")])])
                    .probe_from(&["pod-1a", "client"], to(site.external_ip(0, 0)), &Expect::Unserved)
                    .probe_from(&["pod-1a", "client"], to(site.load_balancer_ip(0, 0)), &Expect::Unserved),
            ]
        },
    ),
    Rule::new(
        "ping",
        Topic::Rejects,
        "A cluster IP of a service answers pings from inside.",
        |site| {
            let step = Step::new([site.exposed(), site.slice(&[ready("pod-1b")])]);
            vec![
                ["pod-1a", "pod-3a", "node-1"].into_iter().fold(step, |step, from| {
                    step.probe_by(&[Protocol::Ping], from, site.vip(), Expect::Echo)
                }),
            ]
        },
    )
    .deviates(
        "kube-proxy rejects pings to a cluster IP as it does undefined ports. People ping service addresses to see whether they \
         exist; an answer says just that.",
    ),
    Rule::new(
        "unallocated-address",
        Topic::Rejects,
        "An address in a ServiceCIDR that no Service has is dropped, and does not loop between node and router.",
        |site| {
            vec![
                Step::new([site.service(), site.slice(&[ready("pod-1b")])])
                    .probe_from(&["pod-1a", "node-1"], (site.ip(9), PORT).into(), &Expect::Dropped)
                    .probe_by(&[Protocol::Ping], "pod-1a", (site.ip(9), PORT).into(), Expect::Dropped),
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
        "Refusals are ICMP port unreachable by default; --reject tcp-reset answers TCP with a reset, which Linux clients notice at \
         once.",
        &["proxy-tests: packet_refused_with_reset"],
    ),
    Rule::by_tests(
        "refusals-are-limited",
        Topic::Rejects,
        "Refusals are sent at a limited rate, as the kernel's own ICMP errors are.",
        &["proxy-tests: packet_refusals_are_limited"],
    ),
];
