//! Fields of an EndpointSlice.

use serde_json::json;

use super::{Expect, Protocol, Rule, Step, TARGET, Topic, address, dying, port, ready, terminating};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "union-of-slices",
        Topic::EndpointSlice,
        "The endpoints of a Service are those of all its slices together.",
        |case| {
            let slices = [
                case.slice_named("web-1", &[ready("pod-1b")]),
                case.slice_named("web-2", &[ready("pod-2a"), ready("pod-2b")]),
                case.slice_named("web-3", &[]),
            ];
            let expect = case.answers(&["pod-1b", "pod-2a", "pod-2b"]);
            vec![
                Step::new([case.node_port_service()].into_iter().chain(slices))
                    .probe_from(&["pod-1a", "node-3"], case.vip(), &expect)
                    .probe("client", case.at_node(2), expect),
            ]
        },
    ),
    Rule::new(
        "address-types",
        Topic::EndpointSlice,
        "addressType is the family; slices of type FQDN are not read.",
        |case| {
            let names = case
                .slice_named("web-2", &[ready("pod-2a").with(json!({"addresses": ["pod.example.com"]}))])
                .with(json!({"addressType": "FQDN"}));
            let other_family = case.slice_of(!case.ipv4, "web-3", &[ready("pod-2a")]);
            vec![Step::new([case.service(), case.slice(&[ready("pod-1b")]), names, other_family]).probe_from(
                &["pod-1a", "node-1"],
                case.vip(),
                &case.answers(&["pod-1b"]),
            )]
        },
    ),
    Rule::new(
        "slice-port-must-match",
        Topic::EndpointSlice,
        "A slice port without a name has the empty one; those without a number (or 0) are not read; name and protocol must both be the Service port's.",
        |case| {
            let slice =
                |name, pod, ports| case.slice_named(name, &[ready(pod)]).with(json!({"ports": ports}));
            let slices = [
                slice("web-1", "pod-1b", json!([port("tcp", "TCP", TARGET)])),
                slice("web-2", "pod-2a", json!([{"protocol": "TCP", "port": TARGET}])),
                slice("web-3", "pod-2b", json!([{"name": "tcp", "protocol": "TCP"}])),
                slice("web-4", "pod-3a", json!([port("tcp", "TCP", 0)])),
                slice("web-5", "pod-3b", json!([port("tcp", "UDP", TARGET), port("udp", "TCP", TARGET)])),
            ];
            vec![
                Step::new([case.service()].into_iter().chain(slices))
                    .probe_by(&[Protocol::Tcp], "pod-1a", case.vip(), case.answers(&["pod-1b"]))
                    .probe_by(&[Protocol::Udp], "pod-1a", case.vip(), Expect::Refused),
            ]
        },
    ),
    Rule::new(
        "named-target-ports",
        Topic::EndpointSlice,
        "Slices may give one port name different numbers (a named targetPort that differs from pod to pod): all are endpoints.",
        |case| {
            let slice = |name, pod, number| {
                let ports = json!([port("tcp", "TCP", number), port("udp", "UDP", number)]);
                case.slice_named(name, &[ready(pod)]).with(json!({ "ports": ports }))
            };
            let slices = [
                slice("web-1", "pod-1b", 8080),
                slice("web-2", "pod-2a", 8081),
                slice("web-3", "pod-2a", 8082),
            ];
            let expect = case.answers(&["pod-1b:8080", "pod-2a:8081", "pod-2a:8082"]);
            vec![
                Step::new([case.node_port_service()].into_iter().chain(slices))
                    .probe_from(&["pod-1a", "node-2"], case.vip(), &expect)
                    .probe("client", case.at_node(0), expect),
            ]
        },
    ),
    Rule::new(
        "first-address",
        Topic::EndpointSlice,
        "Of an endpoint's addresses only the first is used.",
        |case| {
            let two = json!({"addresses": [address("pod-2b", case.ipv4), address("pod-2a", case.ipv4)]});
            vec![Step::new([case.service(), case.slice(&[ready("pod-2b").with(two)])]).probe(
                "pod-1a",
                case.vip(),
                case.answers(&["pod-2b"]),
            )]
        },
    ),
    Rule::new(
        "node-name",
        Topic::EndpointSlice,
        "An endpoint is local where nodeName is the node's name; without nodeName it is local nowhere.",
        |case| {
            let service = case.service().with(json!({"spec": {"internalTrafficPolicy": "Local"}}));
            let nowhere = ready("pod-1a").with(json!({"nodeName": null}));
            let elsewhere = ready("pod-2b").with(json!({"nodeName": "node-3"}));
            vec![
                Step::new([service, case.slice(&[ready("pod-1b"), nowhere, elsewhere])])
                    .probe("node-1", case.vip(), case.answers(&["pod-1b"]))
                    .probe("pod-2a", case.vip(), Expect::NoLocalEndpoints)
                    .probe("pod-3a", case.vip(), case.answers(&["pod-2b"])),
            ]
        },
    ),
    Rule::new(
        "condition-defaults",
        Topic::EndpointSlice,
        "Conditions that are missing mean: ready, serving, not terminating.",
        |case| {
            let none = ready("pod-1b").with(json!({"conditions": null}));
            let null_ready = ready("pod-2a").with(json!({"conditions": {"ready": null}}));
            let serving = ready("pod-2b")
                .with(json!({"conditions": {"ready": false, "serving": null, "terminating": true}}));
            let serving_only = || serving.clone();
            vec![
                Step::new([case.service(), case.slice(&[none, null_ready, serving_only()])]).probe(
                    "pod-1a",
                    case.vip(),
                    case.answers(&["pod-1b", "pod-2a"]),
                ),
                Step::new([case.service(), case.slice(&[serving_only()])]).probe(
                    "pod-1a",
                    case.vip(),
                    case.answers(&["pod-2b"]),
                ),
            ]
        },
    ),
    Rule::new(
        "duplicate-endpoints",
        Topic::EndpointSlice,
        "If slices name the same address and port twice, one that does not terminate counts, in whichever order they come.",
        |case| {
            let slices = |first, second| {
                [
                    case.service(),
                    case.slice_named("web-1", &[first]),
                    case.slice_named("web-2", &[second, ready("pod-2a")]),
                ]
            };
            let both = case.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new(slices(ready("pod-1b"), dying("pod-1b"))).probe("pod-1a", case.vip(), both.clone()),
                Step::new(slices(terminating("pod-1b"), ready("pod-1b"))).probe("pod-1a", case.vip(), both),
            ]
        },
    ),
];
