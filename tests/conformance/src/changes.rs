//! How changes affect existing connections.

use serde_json::json;

use super::{Expect, Object, PORT, Protocol, Rule, Step, Topic, ready, terminating, unready};

/// Endpoints listen on a port that no other Service has.
fn at(port: u16, slice: Object) -> Object {
    slice.with(json!({"ports": [super::port("tcp", "TCP", port), super::port("udp", "UDP", port)]}))
}

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "tcp-outlives-its-endpoint",
        Topic::Changes,
        "A TCP connection stays with its endpoint when that is taken out of service, and when the service loses its last endpoint; new \
         ones go elsewhere or are rejected.",
        |case| {
            let step = |endpoints: &[_], new: &Expect, held: &Expect| {
                Step::new([case.node_port_service(), case.slice(endpoints)])
                    .held("pod", Protocol::Tcp, "pod-1a", case.vip(), held.clone())
                    .held("node", Protocol::Tcp, "node-3", case.vip(), held.clone())
                    .held("local", Protocol::Tcp, "client", case.at_node(1), held.clone())
                    .held("remote", Protocol::Tcp, "client", case.at_node(0), held.clone())
                    .probe_from(&["pod-1a", "node-3"], case.vip(), new)
                    .probe("client", case.at_node(0), new.clone())
            };
            let first = case.answers(&["pod-2a"]);
            vec![
                step(&[ready("pod-2a")], &first, &first),
                step(&[terminating("pod-2a"), ready("pod-1b")], &case.answers(&["pod-1b"]), &Expect::Kept),
                step(&[], &Expect::Refused, &Expect::Kept),
            ]
        },
    ),
    Rule::new(
        "udp-moves",
        Topic::Changes,
        "UDP clients that keep their socket are served by another endpoint as soon as theirs is gone, from pods, nodes and outside.",
        |case| {
            let step = |pod| {
                let expect = case.answers(&[&format!("{pod}:9001")]);
                Step::new([case.node_port_service(), at(9001, case.slice(&[ready(pod)]))])
                    .held("pod", Protocol::Udp, "pod-1a", case.vip(), expect.clone())
                    .held("node", Protocol::Udp, "node-3", case.vip(), expect.clone())
                    .held("node port from a pod", Protocol::Udp, "pod-1a", case.at_node(0), expect.clone())
                    .held("node port", Protocol::Udp, "client", case.at_node(0), expect)
            };
            vec![step("pod-1b"), step("pod-2a"), step("pod-2b")]
        },
    ),
    Rule::new(
        "udp-leaves-what-others-have",
        Topic::Changes,
        "UDP clients leave an endpoint that is their Service's no more even if it is still another Service's.",
        |case| {
            let other = || {
                let name = json!({
                    "metadata": {"name": "other"},
                    "spec": {"clusterIP": case.ip(1), "clusterIPs": [case.ip(1)]},
                });
                let slice = case
                    .slice_named("other-1", &[ready("pod-1b")])
                    .with(json!({"metadata": {"labels": {"kubernetes.io/service-name": "other"}}}));
                [case.service().with(name), at(9008, slice)]
            };
            let step = |pod| {
                let expect = case.answers(&[&format!("{pod}:9008")]);
                let web = [case.node_port_service(), at(9008, case.slice(&[ready(pod)]))];
                Step::new(web.into_iter().chain(other()))
                    .held("pod", Protocol::Udp, "pod-1a", case.vip(), expect.clone())
                    .held("node", Protocol::Udp, "node-3", case.vip(), expect.clone())
                    .held("node port", Protocol::Udp, "client", case.at_node(0), expect)
            };
            vec![step("pod-1b"), step("pod-2a")]
        },
    ),
    Rule::new(
        "udp-moves-under-policy-local",
        Topic::Changes,
        "The same under internalTrafficPolicy Local.",
        |case| {
            let step = |pod| {
                let expect = case.answers(&[&format!("{pod}:9002")]);
                let service = case.service().with(json!({"spec": {"internalTrafficPolicy": "Local"}}));
                Step::new([service, at(9002, case.slice(&[ready(pod), ready("pod-3a")]))])
                    .held("pod", Protocol::Udp, "pod-1a", case.vip(), expect.clone())
                    .held("node", Protocol::Udp, "node-1", case.vip(), expect)
            };
            vec![step("pod-1b"), step("node-1")]
        },
    ),
    Rule::new(
        "udp-survives-without-endpoints",
        Topic::Changes,
        "UDP clients do not stay with an endpoint of a service that has lost its last one, nor of one that was \
         deleted; they are served when it has an endpoint again.",
        |case| {
            let objects = |endpoints: &[_]| [case.node_port_service(), at(9003, case.slice(endpoints))];
            let held = |step: Step, expect: &Expect| {
                step.held("pod", Protocol::Udp, "pod-1a", case.vip(), expect.clone())
                    .held("node", Protocol::Udp, "node-3", case.vip(), expect.clone())
                    .held("outside", Protocol::Udp, "client", case.at_node(0), expect.clone())
            };
            vec![
                held(Step::new(objects(&[ready("pod-2a")])), &case.answers(&["pod-2a:9003"])),
                held(Step::new(objects(&[])), &Expect::Unanswered),
                held(Step::new(objects(&[ready("pod-2b")])), &case.answers(&["pod-2b:9003"])),
                held(Step::new([]), &Expect::Unanswered),
                held(Step::new(objects(&[ready("pod-1b")])), &case.answers(&["pod-1b:9003"])),
            ]
        },
    )
    .deviates("kube-proxy 1.36 leaves them with the dead endpoint until it has another (issue 139628)."),
    Rule::new(
        "udp-served-when-ready",
        Topic::Changes,
        "UDP clients that began while no endpoint was ready are served as soon as one is.",
        |case| {
            let step = |endpoint, expect: &Expect| {
                Step::new([case.node_port_service(), at(9004, case.slice(&[endpoint]))])
                    .held("pod", Protocol::Udp, "pod-1a", case.vip(), expect.clone())
                    .held("node", Protocol::Udp, "node-2", case.vip(), expect.clone())
                    .held("outside", Protocol::Udp, "client", case.at_node(0), expect.clone())
            };
            vec![
                step(unready("pod-1b"), &Expect::Unanswered),
                step(ready("pod-1b"), &case.answers(&["pod-1b:9004"])),
            ]
        },
    ),
    Rule::new(
        "udp-stays-with-what-serves",
        Topic::Changes,
        "A UDP client stays with an endpoint that terminates but still serves, while new ones go elsewhere.",
        |case| {
            let objects = |endpoints: &[_]| [case.node_port_service(), at(9005, case.slice(endpoints))];
            vec![
                Step::new(objects(&[ready("pod-1b")])).held(
                    "pod",
                    Protocol::Udp,
                    "pod-1a",
                    case.vip(),
                    case.answers(&["pod-1b:9005"]),
                ),
                Step::new(objects(&[terminating("pod-1b"), ready("pod-2a")]))
                    .held("pod", Protocol::Udp, "pod-1a", case.vip(), Expect::Kept)
                    .probe("pod-1a", case.vip(), case.answers(&["pod-2a:9005"])),
            ]
        },
    ),
    Rule::new(
        "udp-follows-the-target-port",
        Topic::Changes,
        "When the port in the slice changes, UDP clients follow.",
        |case| {
            let step = |port: u16, endpoint: &str| {
                let slice = at(port, case.slice(&[ready("pod-2a")]));
                let expect = case.answers(&[endpoint]);
                Step::new([case.node_port_service(), slice])
                    .held("pod", Protocol::Udp, "pod-1a", case.vip(), expect.clone())
                    .held("outside", Protocol::Udp, "client", case.at_node(0), expect.clone())
                    .probe("pod-1a", case.vip(), expect)
            };
            vec![step(9006, "pod-2a:9006"), step(9007, "pod-2a:9007")]
        },
    ),
    Rule::new(
        "up-and-down",
        Topic::Changes,
        "Deleting a Service takes its frontends away and leaves other Services alone; created again with the same \
         name and addresses, it is served again.",
        |case| {
            let web = || [case.node_port_service(), case.slice(&[ready("pod-1b")])];
            let other = || {
                let name = json!({
                    "metadata": {"name": "other"},
                    "spec": {"clusterIP": case.ip(1), "clusterIPs": [case.ip(1)]},
                });
                let slice = case
                    .slice_named("other-1", &[ready("pod-2a")])
                    .with(json!({"metadata": {"labels": {"kubernetes.io/service-name": "other"}}}));
                [case.service().with(name), slice]
            };
            let step = |objects: Vec<_>, expect: &Expect| {
                Step::new(objects)
                    .probe_from(&["pod-1a", "node-2"], case.vip(), expect)
                    .probe("client", case.at_node(0), expect.clone())
                    .probe("pod-1a", (case.ip(1), PORT).into(), case.answers(&["pod-2a"]))
            };
            vec![
                step(web().into_iter().chain(other()).collect(), &case.answers(&["pod-1b"])),
                step(other().into(), &Expect::Unserved),
                step(web().into_iter().chain(other()).collect(), &case.answers(&["pod-1b"])),
            ]
        },
    ),
    Rule::new(
        "ports-come-and-go",
        Topic::Changes,
        "Ports may be added to a Service, renumbered and taken away.",
        |case| {
            let step = |ports: &[u16]| {
                let named = ports.iter().map(|number| super::port(&format!("p{number}"), "TCP", *number));
                let targets = ports.iter().map(|number| super::port(&format!("p{number}"), "TCP", 8080));
                let (named, targets): (Vec<_>, Vec<_>) = (named.collect(), targets.collect());
                let service = case.service().with(json!({"spec": {"ports": named}}));
                let slice = case.slice(&[ready("pod-2a")]).with(json!({"ports": targets}));
                [81, 82].into_iter().fold(Step::new([service, slice]), |step, port| {
                    let expect =
                        if ports.contains(&port) { case.answers(&["pod-2a"]) } else { Expect::Refused };
                    step.probe_by(&[Protocol::Tcp], "pod-1a", (case.ip(0), port).into(), expect.clone())
                        .probe_by(&[Protocol::Tcp], "node-1", (case.ip(0), port).into(), expect)
                })
            };
            vec![step(&[81]), step(&[81, 82]), step(&[82])]
        },
    ),
    Rule::new(
        "node-port-changes",
        Topic::Changes,
        "When a nodePort changes its number, the new one is served and the old one is not.",
        |case| {
            let step = |n, other| {
                let number = case.node_port(n);
                let ports = ["TCP", "UDP"].map(|protocol| {
                    json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT, "nodePort": number})
                });
                let service = case.node_port_service().with(json!({"spec": {"ports": ports}}));
                let at = |n| (case.at_node(1).ip(), case.node_port(n)).into();
                Step::new([service, case.slice(&[ready("pod-1b")])])
                    .probe_from(&["client", "node-2"], at(n), &case.answers(&["pod-1b"]))
                    .probe_from(&["client", "node-2"], at(other), &Expect::Unserved)
            };
            vec![step(0, 1), step(1, 0)]
        },
    ),
    Rule::new(
        "external-policy-changes",
        Topic::Changes,
        "externalTrafficPolicy may change to Local and back: a node without endpoints then is silent to clients outside, still serves \
         its own pods, and serves all again.",
        |case| {
            let objects = |policy: &str| {
                let service = case.exposed().with(json!({"spec": {"externalTrafficPolicy": policy}}));
                [service, case.slice(&[ready("pod-1b")])]
            };
            let served = case.answers(&["pod-1b"]);
            let step = |policy: &str, third: &Expect| {
                Step::new(objects(policy))
                    .probe("client", case.at_node(0), served.clone())
                    .probe("client", case.at_node(2), third.clone())
                    .probe("client", case.load_balancer(2), third.clone())
                    .probe_from(&["pod-3a", "node-3"], case.at_node(2), &served)
            };
            vec![step("Local", &Expect::NoLocalEndpoints), step("Cluster", &served), step("Local", &Expect::NoLocalEndpoints)]
        },
    ),
    Rule::by_tests(
        "rolling-update",
        Topic::Changes,
        "While endpoints come and go, no connection that is open fails, and no new one goes to an endpoint that is gone.",
        &["proxy-tests: routed_pods_by_sockets", "proxy-tests: native_xdp"],
    ),
    Rule::by_tests(
        "no-window-tracking",
        Topic::Changes,
        "Answers are translated whatever their sequence numbers: a packet out of the window does not lead to a reset.",
        &["proxy-tests: packet_life_of_a_connection"],
    ),
    Rule::by_tests(
        "restart",
        Topic::Changes,
        "Killing, ending or restarting the agent interrupts no connection and refuses no new one.",
        &["proxy-tests: no_request_is_lost_by_sockets", "proxy-tests: no_request_is_lost_by_packets"],
    ),
];
