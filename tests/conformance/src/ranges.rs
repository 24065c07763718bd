//! `loadBalancerSourceRanges`.

use serde_json::json;

use super::{Case, Expect, Object, Rule, Step, Topic, address, ready};

fn host(host: &str, ipv4: bool) -> String {
    format!("{}/{}", address(host, ipv4), if ipv4 { 32 } else { 128 })
}

fn ranged(case: &Case, ranges: &[String]) -> Object {
    case.exposed().with(json!({"spec": {"loadBalancerSourceRanges": ranges}}))
}

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "source-ranges",
        Topic::SourceRanges,
        "Only clients in one of the ranges reach load balancer IPs, pods and nodes included; others are dropped before anything \
         else. White space around a range does not matter.",
        |case| {
            let ranges = [
                format!("  {} ", host("client", case.ipv4)),
                host("pod-1a", case.ipv4),
                host("node-1", case.ipv4),
            ];
            let served = case.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new([ranged(case, &ranges), case.slice(&[ready("pod-1b"), ready("pod-2a")])])
                    .probe_from(&["client", "pod-1a", "node-1"], case.load_balancer(0), &served)
                    .probe("client", case.load_balancer(2), served.clone())
                    .probe_from(&["pod-1b", "pod-3a", "node-2"], case.load_balancer(0), &Expect::Denied),
            ]
        },
    )
    .deviates("A socket that is not allowed gets EPERM at once; packets are dropped. A socket whose namespace the agent has not looked \
         at yet is not translated: the node that gets its packets knows their source."),
    Rule::new(
        "source-ranges-exclude-outside",
        Topic::SourceRanges,
        "A client outside that is in no range gets nothing from a load balancer IP; it still gets nodePort and external IP, as pods \
         get the cluster IP.",
        |case| {
            let served = case.answers(&["pod-2a"]);
            vec![
                Step::new([ranged(case, &[host("pod-1a", case.ipv4)]), case.slice(&[ready("pod-2a")])])
                    .probe("client", case.load_balancer(0), Expect::Denied)
                    .probe("client", case.at_node(0), served.clone())
                    .probe("client", case.external(0), served.clone())
                    .probe_from(&["pod-1b", "node-2"], case.vip(), &served)
                    .probe_from(&["pod-1b", "node-2"], case.external(0), &served),
            ]
        },
    ),
    Rule::new(
        "source-ranges-of-everyone",
        Topic::SourceRanges,
        "A range of length 0, or ranges of the other family only, allow everyone of this family.",
        |case| {
            let everyone = if case.ipv4 { "0.0.0.0/0" } else { "::/0" };
            let ranges = [host("pod-1a", case.ipv4), everyone.to_owned()];
            let slice = || case.slice(&[ready("pod-2a")]);
            let froms = ["client", "pod-1b", "node-2"];
            let served = case.answers(&["pod-2a"]);
            vec![
                Step::new([ranged(case, &ranges), slice()]).probe_from(&froms, case.load_balancer(0), &served),
                Step::new([ranged(case, &[host("client", !case.ipv4)]), slice()]).probe_from(
                    &froms,
                    case.load_balancer(0),
                    &served,
                ),
            ]
        },
    ),
    Rule::new(
        "source-ranges-without-endpoints",
        Topic::SourceRanges,
        "Clients outside the ranges are dropped, with or without endpoints; allowed clients are rejected if the \
         service has no endpoints.",
        |case| {
            vec![
                Step::new([ranged(case, &[host("client", case.ipv4)]), case.slice(&[])])
                    .probe("client", case.load_balancer(0), Expect::Refused)
                    .probe_from(&["pod-1a", "node-1"], case.load_balancer(0), &Expect::Denied),
            ]
        },
    ),
    Rule::new(
        "source-ranges-change",
        Topic::SourceRanges,
        "Ranges may be added, changed and taken away while the service works.",
        |case| {
            let slice = || case.slice(&[ready("pod-2a")]);
            let step = |ranges: &[String], client, pod| {
                Step::new([ranged(case, ranges), slice()])
                    .probe("client", case.load_balancer(0), client)
                    .probe("pod-1a", case.load_balancer(0), pod)
            };
            let served = || case.answers(&["pod-2a"]);
            vec![
                step(&[], served(), served()),
                step(&[host("client", case.ipv4)], served(), Expect::Denied),
                step(&[host("pod-1a", case.ipv4)], Expect::Denied, served()),
                step(&[], served(), served()),
            ]
        },
    ),
    Rule::by_tests(
        "source-ranges-and-own-address",
        Topic::SourceRanges,
        "If a range contains the node's own address, the Service's load balancer IPs are allowed as sources as well: where such an \
         address is on lo, the node connects to itself from it.",
        &["proxy-agent: source_ranges_are_of_the_family_and_let_the_node_reach_itself"],
    ),
];
