//! Where connections go and whom servers see.

use serde_json::json;

use super::{Expect, PORT, Protocol, Rule, Source, Step, Topic, ready};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "every-endpoint-gets-its-share",
        Topic::Dispatch,
        "Each new connection goes to any endpoint, chosen at random: over time to all of them, from everywhere.",
        |case| {
            let slice = case.slice(&[ready("pod-1b"), ready("pod-2a"), ready("pod-3a"), ready("node-2")]);
            let expect = case.answers(&["pod-1b", "pod-2a", "pod-3a", "node-2"]);
            vec![
                Step::new([case.node_port_service(), slice])
                    .probe_from(&["pod-1a", "node-3"], case.vip(), &expect)
                    .probe("client", case.at_node(0), expect),
            ]
        },
    ),
    Rule::new(
        "frontends-before-node-ports",
        Topic::Dispatch,
        "A frontend with exactly the destination's address comes before a nodePort with its port.",
        |case| {
            let node_port = case.node_port(0);
            let name = json!({"metadata": {"name": "other"}, "spec": {
                "clusterIP": case.ip(1),
                "clusterIPs": [case.ip(1)],
                "externalIPs": [case.at_node(0).ip()],
                "ports": [super::port("tcp", "TCP", node_port), super::port("udp", "UDP", node_port)],
            }});
            let others = case
                .slice_named("other-1", &[ready("pod-2a")])
                .with(json!({"metadata": {"labels": {"kubernetes.io/service-name": "other"}}}));
            let objects =
                [case.node_port_service(), case.slice(&[ready("pod-1b")]), case.service().with(name), others];
            vec![
                Step::new(objects)
                    .probe_from(&["client", "node-1", "pod-1a"], case.at_node(0), &case.answers(&["pod-2a"]))
                    .probe_from(&["client", "node-2"], case.at_node(1), &case.answers(&["pod-1b"])),
            ]
        },
    ),
    Rule::new(
        "node-ports-of-localhost",
        Topic::Dispatch,
        "Processes of a node reach nodePorts at its loopback addresses; a pod's loopback is its own.",
        |case| {
            vec![
                Step::new([case.node_port_service(), case.slice(&[ready("pod-1b"), ready("pod-2a")])])
                    .probe_from(
                        &["node-1", "node-3"],
                        case.at_localhost(),
                        &case.answers(&["pod-1b", "pod-2a"]),
                    )
                    .probe_by(&[Protocol::Tcp], "pod-1a", case.at_localhost(), Expect::Unserved),
            ]
        },
    )
    .deviates(
        "kube-proxy's nftables backend has no nodePorts at loopback, its iptables backend has them for IPv4 by way of \
         route_localnet (CVE-2020-8558). Here sockets are translated, so they work for both families and open nothing.",
    ),
    Rule::new(
        "node-ports-are-the-nodes",
        Topic::Dispatch,
        "nodePorts are served at addresses of the node, not at those of pods.",
        |case| {
            let at_pod = |pod| (super::address(pod, case.ipv4), case.node_port(0)).into();
            vec![
                Step::new([case.node_port_service(), case.slice(&[ready("pod-1b")])])
                    .probe_by(&[Protocol::Tcp], "pod-1a", at_pod("pod-2a"), Expect::Unanswered)
                    .probe_by(&[Protocol::Tcp], "node-1", at_pod("pod-1b"), Expect::Unanswered),
            ]
        },
    ),
    Rule::new(
        "pods-are-seen-through-cluster-ips",
        Topic::Dispatch,
        "Through a cluster IP servers see the pod itself, on the same node and across nodes; they see a node's own address when \
         a node asks.",
        |case| {
            let objects = |pod| [case.service(), case.slice(&[ready(pod)])];
            let step = |pod| {
                Step::new(objects(pod))
                    .probe("pod-1a", case.vip(), case.answers(&[pod]))
                    .seen_as(Source::Client)
                    .probe("pod-3a", case.vip(), case.answers(&[pod]))
                    .seen_as(Source::Client)
                    .probe("node-1", case.vip(), case.answers(&[pod]))
                    .seen_as(Source::Node(0))
            };
            vec![step("pod-1b"), step("pod-2a")]
        },
    ),
    Rule::new(
        "pods-are-seen-through-external-frontends",
        Topic::Dispatch,
        "Pods that use a nodePort, external IP or load balancer IP on their own node are not masqueraded, whatever the policy.",
        |case| {
            let step = |policy: &str| {
                let service = case.exposed().with(json!({"spec": {"externalTrafficPolicy": policy}}));
                let step = Step::new([service, case.slice(&[ready("pod-2a")])]);
                case.outside_frontends(0).into_iter().fold(step, |step, to| {
                    step.probe("pod-1a", to, case.answers(&["pod-2a"])).seen_as(Source::Client)
                })
            };
            vec![step("Cluster"), step("Local")]
        },
    )
    .deviates(
        "kube-proxy masquerades them under policy Cluster. Replies come back to the pod's node anyway, so \
         masquerading would only hide the client.",
    ),
    Rule::new(
        "clients-are-seen-under-local",
        Topic::Dispatch,
        "Under externalTrafficPolicy Local servers see the client outside, by nodePort, external IP and load balancer IP.",
        |case| {
            let service = case.exposed().with(json!({"spec": {"externalTrafficPolicy": "Local"}}));
            let step = Step::new([service, case.slice(&[ready("pod-1b")])]);
            vec![case.outside_frontends(0).into_iter().fold(step, |step, to| {
                step.probe("client", to, case.answers(&["pod-1b"])).seen_as(Source::Client)
            })]
        },
    ),
    Rule::new(
        "clients-under-cluster",
        Topic::Dispatch,
        "Under externalTrafficPolicy Cluster a connection to an endpoint on another node comes from the entry node.",
        |case| {
            let step = |pod, source| {
                let step = Step::new([case.exposed(), case.slice(&[ready(pod)])]);
                case.outside_frontends(0).into_iter().fold(step, |step, to| {
                    step.probe("client", to, case.answers(&[pod])).seen_as(source)
                })
            };
            vec![step("pod-2a", Source::Node(0)), step("pod-1b", Source::Client)]
        },
    )
    .deviates(
        "kube-proxy masquerades connections to the entry node's own endpoints too. Their answers pass this node anyway, so servers \
         see the client.",
    ),
    Rule::new(
        "hairpin",
        Topic::Dispatch,
        "A pod that is its own endpoint reaches itself by every frontend of its node.",
        |case| {
            let step = Step::new([case.exposed(), case.slice(&[ready("pod-1a")])]);
            let all = [case.vip()].into_iter().chain(case.outside_frontends(0));
            vec![all.fold(step, |step, to| {
                step.probe("pod-1a", to, case.answers(&["pod-1a"])).seen_as(Source::Hairpin)
            })]
        },
    )
    .deviates(
        "kube-proxy masquerades: the pod sees its node. Here it sees the service's address (packets) or itself (sockets), which \
         needs no port of the node.",
    ),
    Rule::new(
        "host-network-endpoints",
        Topic::Dispatch,
        "Endpoints may be in the host network of the client's node or of another.",
        |case| {
            let expect = case.answers(&["node-1", "node-2"]);
            vec![
                Step::new([case.node_port_service(), case.slice(&[ready("node-1"), ready("node-2")])])
                    .probe_from(&["pod-1a", "pod-3a", "node-1", "node-3"], case.vip(), &expect)
                    .probe("client", case.at_node(0), expect),
            ]
        },
    ),
    Rule::new(
        "several-services-of-the-same-pods",
        Topic::Dispatch,
        "Several Services may have the same endpoints.",
        |case| {
            let second = case.service().with(json!({
                "metadata": {"name": "second"},
                "spec": {"clusterIP": case.ip(1), "clusterIPs": [case.ip(1)]},
            }));
            let seconds = case
                .slice_named("second-1", &[ready("pod-1b"), ready("pod-2a")])
                .with(json!({"metadata": {"labels": {"kubernetes.io/service-name": "second"}}}));
            let expect = case.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new([case.service(), case.slice(&[ready("pod-1b"), ready("pod-2a")]), second, seconds])
                    .probe("pod-1a", case.vip(), expect.clone())
                    .probe("pod-1a", (case.ip(1), PORT).into(), expect),
            ]
        },
    ),
    Rule::new(
        "cluster-ips-from-outside",
        Topic::Dispatch,
        "Cluster IPs are for the cluster: a client outside gets no answer from one, even by a route to a node.",
        |case| {
            vec![
                Step::new([case.service(), case.slice(&[ready("pod-1b"), ready("pod-2a")])])
                    .probe("client", case.vip(), Expect::Unanswered),
            ]
        },
    )
    .deviates(
        "kube-proxy translates and masquerades them. Cluster IPs are not routed to nodes by accident; \
         --external-cluster-ips brings it back.",
    ),
    Rule::by_tests(
        "node-port-addresses",
        Topic::Dispatch,
        "--nodeport-addresses limits the addresses that serve nodePorts, by family; `primary` means those of the Node.",
        &["proxy-agent: nodeport_addresses_follow_the_flag", "proxy-agent: a_bind_address_is_the_primary_one_of_its_family"],
    )
    .deviates(
        "Without the option all addresses of the node serve nodePorts, as in the iptables backend, but for link-local ones of IPv6; the \
         nftables backend serves the primary addresses only.",
    ),
    Rule::by_tests(
        "no-netfilter-rules",
        Topic::Dispatch,
        "No rule of netfilter is needed or touched, and nothing becomes INVALID to its connection tracking: neither FORWARD accepts \
         nor INVALID drops are missed.",
        &["proxy-tests: routed_pods_by_packets", "proxy-tests: bridged_pods_by_packets"],
    ),
    Rule::absent(
        "masquerade-all",
        Topic::Dispatch,
        "masqueradeAll hides every client of cluster IPs behind its node.",
        "Not supported. It exists for pod networks that cannot route replies to pods; translation at the client's node does not \
         depend on that.",
    ),
    Rule::absent(
        "local-detectors",
        Topic::Dispatch,
        "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix distinguish pods from clients outside.",
        "Not needed: the hook that sees a packet or socket identifies the client. The options are accepted and ignored.",
    ),
];
