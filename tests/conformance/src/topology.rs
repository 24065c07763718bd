//! Topology hints. `node-1` and `node-2` are in `zone-a`, `node-3` is in `zone-b`.

use serde_json::json;

use super::{EndpointText, Rule, Step, Topic, ready, terminating};

fn zone(endpoint: EndpointText, zones: &[&str]) -> EndpointText {
    let zones: Vec<_> = zones.iter().map(|zone| json!({"name": zone})).collect();
    endpoint.with(json!({"hints": {"forZones": zones}}))
}

fn node(endpoint: EndpointText, nodes: &[&str]) -> EndpointText {
    let nodes: Vec<_> = nodes.iter().map(|node| json!({"name": node})).collect();
    endpoint.with(json!({"hints": {"forNodes": nodes}}))
}

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "zone-hints",
        Topic::Topology,
        "If all ready endpoints have zone hints and one names this node's zone, only those for this zone are used, by clients outside \
         too under externalTrafficPolicy Cluster (KEP-2433).",
        |case| {
            let slice = case.slice(&[
                zone(ready("pod-1b"), &["zone-a"]),
                zone(ready("pod-2a"), &["zone-b"]),
                zone(ready("pod-2b"), &["zone-a", "zone-b"]),
            ]);
            let (a, b) = (case.answers(&["pod-1b", "pod-2b"]), case.answers(&["pod-2a", "pod-2b"]));
            vec![
                Step::new([case.exposed(), slice])
                    .probe_from(&["pod-1a", "node-2"], case.vip(), &a)
                    .probe_from(&["pod-3a", "node-3"], case.vip(), &b)
                    .probe("client", case.at_node(0), a.clone())
                    .probe("client", case.load_balancer(2), b),
            ]
        },
    ),
    Rule::new(
        "node-hints",
        Topic::Topology,
        "If all ready endpoints have node hints and one names this node, only those for this node are used; node hints come before \
         zone hints (KEP-4444).",
        |case| {
            let slice = case.slice(&[
                zone(node(ready("pod-1b"), &["node-1"]), &["zone-b"]),
                zone(node(ready("pod-2a"), &["node-2"]), &["zone-b"]),
                zone(node(ready("pod-2b"), &["node-2"]), &["zone-a"]),
            ]);
            vec![
                Step::new([case.exposed(), slice])
                    .probe_from(&["pod-1a", "node-1"], case.vip(), &case.answers(&["pod-1b"]))
                    .probe("node-2", case.vip(), case.answers(&["pod-2a", "pod-2b"]))
                    // No hint names it: its zone decides.
                    .probe_from(&["pod-3a", "node-3"], case.vip(), &case.answers(&["pod-1b", "pod-2a"])),
            ]
        },
    ),
    Rule::new(
        "hints-missing-somewhere",
        Topic::Topology,
        "If a ready endpoint has no hint, hints do not count.",
        |case| {
            let slice = case.slice(&[zone(ready("pod-1b"), &["zone-a"]), ready("pod-2a")]);
            let everyone = case.answers(&["pod-1b", "pod-2a"]);
            vec![Step::new([case.service(), slice]).probe_from(&["pod-1a", "pod-3a"], case.vip(), &everyone)]
        },
    ),
    Rule::new(
        "hints-for-others",
        Topic::Topology,
        "If no hint names this node's zone, hints do not count.",
        |case| {
            let slice = case.slice(&[zone(ready("pod-1b"), &["zone-a"]), zone(ready("pod-2a"), &["zone-c"])]);
            vec![
                Step::new([case.service(), slice])
                    .probe("pod-3a", case.vip(), case.answers(&["pod-1b", "pod-2a"]))
                    .probe("pod-1a", case.vip(), case.answers(&["pod-1b"])),
            ]
        },
    ),
    Rule::new(
        "hints-of-ready-endpoints",
        Topic::Topology,
        "Hints of endpoints that are not ready do not count, neither for nor against; the fall-back to terminating endpoints \
         ignores hints.",
        |case| {
            let with_terminating = case.slice(&[
                zone(ready("pod-1b"), &["zone-a"]),
                zone(ready("pod-2a"), &["zone-b"]),
                terminating("pod-2b"),
            ]);
            let all_terminating = case
                .slice(&[zone(terminating("pod-1b"), &["zone-a"]), zone(terminating("pod-2a"), &["zone-b"])]);
            vec![
                Step::new([case.service(), with_terminating])
                    .probe("pod-1a", case.vip(), case.answers(&["pod-1b"]))
                    .probe("pod-3a", case.vip(), case.answers(&["pod-2a"])),
                Step::new([case.service(), all_terminating]).probe_from(
                    &["pod-1a", "pod-3a"],
                    case.vip(),
                    &case.answers(&["pod-1b", "pod-2a"]),
                ),
            ]
        },
    ),
    Rule::new(
        "hints-and-policy-local",
        Topic::Topology,
        "Hints never limit the local endpoints of policy Local.",
        |case| {
            let slice = case.slice(&[zone(ready("pod-1b"), &["zone-b"]), zone(ready("pod-3a"), &["zone-a"])]);
            let policies =
                json!({"spec": {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}});
            vec![
                Step::new([case.exposed().with(policies), slice])
                    .probe("pod-1a", case.vip(), case.answers(&["pod-1b"]))
                    .probe("client", case.at_node(0), case.answers(&["pod-1b"]))
                    // Not subject to Local: the nodePort from inside.
                    .probe("pod-1a", case.at_node(0), case.answers(&["pod-3a"])),
            ]
        },
    ),
    Rule::new(
        "same-node-endpoint-comes-and-goes",
        Topic::Topology,
        "With node hints (PreferSameNode), the loss of the node's endpoint falls back to the zone's and its return ends that.",
        |case| {
            let hinted = |place, node_name| zone(node(ready(place), &[node_name]), &["zone-a"]);
            let with = case.slice(&[hinted("pod-1b", "node-1"), hinted("pod-2a", "node-2")]);
            let without = case.slice(&[hinted("pod-2a", "node-2")]);
            let served = |slice: &super::Object, by| {
                Step::new([case.service(), slice.clone()]).probe("pod-1a", case.vip(), case.answers(&[by]))
            };
            vec![served(&with, "pod-1b"), served(&without, "pod-2a"), served(&with, "pod-1b")]
        },
    ),
    Rule::by_tests(
        "zone-of-the-node",
        Topic::Topology,
        "The zone is the label topology.kubernetes.io/zone of the Node; when it changes, all services are planned again.",
        &["proxy-agent: plans_depend_on_the_zone_and_source_ranges_on_the_addresses"],
    ),
];
