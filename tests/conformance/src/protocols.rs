//! TCP, UDP, SCTP, ICMP.

use serde_json::json;

use super::{Case, Expect, PORT, Proof, Protocol, Rule, Step, TARGET, Topic, port, ready};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "sctp",
        Topic::Protocols,
        "SCTP is served as TCP and UDP are: cluster IP, nodePort, external and load balancer IPs, rejects.",
        sctp,
    )
    .proof(Proof::CoreSteps(sctp, &["proxy-tests: packet_sctp_keeps_its_checksum"]))
    .deviates(
        "Packets of pods and of clients outside only: the kernel has no socket hook for SCTP, so SCTP packets from \
         a node itself to a service are not translated.",
    ),
    Rule::by_tests(
        "large-datagrams",
        Topic::Protocols,
        "Datagrams that are sent as fragments reach their endpoint whole.",
        &[
            "proxy-tests: routed_pods_by_sockets",
            "proxy-tests: fragments_in_any_order",
            "proxy-tests: plain_routes",
            "proxy-tests: vxlan",
        ],
    ),
    Rule::by_tests(
        "icmp-errors",
        Topic::Protocols,
        "ICMP errors about translated packets reach their senders and quote the packet as it was sent: path MTU \
         discovery and rejects work \
         through services.",
        &[
            "proxy-tests: packet_error_about_a_request",
            "proxy-tests: packet_error_about_a_reply",
            "proxy-tests: packet_too_big_gives_an_icmp_error",
            "proxy-tests: narrow_link_to_the_client",
            "proxy-tests: narrow_link_between_nodes",
            "proxy-tests: narrow_links_of_pods",
        ],
    ),
    Rule::by_tests(
        "sockets-of-the-other-family",
        Topic::Protocols,
        "IPv6 sockets that talk IPv4 (mapped addresses) are served as IPv4 sockets are.",
        &["proxy-tests: routed_pods_by_sockets"],
    ),
    Rule::by_tests(
        "peer-name",
        Topic::Protocols,
        "A client sees the service's address as its peer, whichever way it was translated.",
        &["proxy-tests: routed_pods_by_sockets"],
    ),
    Rule::by_tests(
        "bulk",
        Topic::Protocols,
        "Much data passes unchanged both ways, with and without the offloads of network cards.",
        &["proxy-tests: routed_pods_by_packets", "proxy-tests: native_xdp"],
    ),
];

fn sctp(case: &Case) -> Vec<Step> {
    let sctp = |number: u16| json!([port("sctp", "SCTP", number)]);
    let with_node_port =
        json!([super::Object(sctp(PORT)[0].clone()).with(json!({"nodePort": case.node_port(0)})).0]);
    let service = || case.exposed().with(json!({"spec": {"ports": with_node_port}}));
    let slice = |endpoints: &[_]| case.slice(endpoints).with(json!({"ports": sctp(TARGET)}));
    let by = [Protocol::Sctp];
    let all = |step: Step, expect: &Expect| {
        let step = step.probe_by(&by, "pod-1a", case.vip(), expect.clone());
        case.outside_frontends(0).into_iter().fold(step, |step, to| {
            step.probe_by(&by, "pod-1a", to, expect.clone()).probe_by(&by, "client", to, expect.clone())
        })
    };
    vec![
        all(
            Step::new([service(), slice(&[ready("pod-1b"), ready("pod-2a")])]),
            &case.answers(&["pod-1b", "pod-2a"]),
        )
        .probe_by(&[Protocol::Tcp], "pod-1a", case.vip(), Expect::Refused),
        all(Step::new([service(), slice(&[])]), &Expect::Refused),
    ]
}
