//! Fields of a Service.

use serde_json::json;

use super::{Expect, NODES, PORT, Protocol, Rule, Step, TARGET, Topic, port, ready};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "type-changes",
        Topic::Service,
        "type ExternalName is not served even if the object has a clusterIP; changing the type to ClusterIP or NodePort and \
         back programs the service and removes it.",
        |case| {
            let slice = || case.slice(&[ready("pod-1b"), ready("pod-2a")]);
            let everyone = case.answers(&["pod-1b", "pod-2a"]);
            let external_name = || {
                let patch = json!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
                Step::new([case.node_port_service().with(patch), slice()])
                    .probe_from(&["pod-1a", "node-3"], case.vip(), &Expect::Unserved)
                    .probe("client", case.at_node(0), Expect::Unserved)
            };
            vec![
                external_name(),
                Step::new([case.service(), slice()])
                    .probe_from(&["pod-1a", "node-3"], case.vip(), &everyone)
                    .probe("client", case.at_node(0), Expect::Unserved),
                external_name(),
                Step::new([case.node_port_service(), slice()])
                    .probe_from(&["pod-1a", "node-3"], case.vip(), &everyone)
                    .probe_from(&["client", "pod-3a", "node-1"], case.at_node(0), &everyone),
                external_name(),
            ]
        },
    ),
    Rule::new(
        "type-does-not-limit-frontends",
        Topic::Service,
        "nodePorts, external IPs and load balancer IPs are served for every type.",
        |case| {
            let service = case.exposed().with(json!({"spec": {"type": "ClusterIP"}}));
            let step = Step::new([service, case.slice(&[ready("pod-2a")])]);
            let step = step.probe("pod-1a", case.vip(), case.answers(&["pod-2a"]));
            vec![case.outside_frontends(0).into_iter().fold(step, |step, to| {
                step.probe_from(&["client", "pod-1a", "node-1"], to, &case.answers(&["pod-2a"]))
            })]
        },
    ),
    Rule::new(
        "basic-cluster-ip",
        Topic::Service,
        "A cluster IP is served for pods and nodes, on nodes with and without endpoints.",
        |case| {
            let objects = [case.service(), case.slice(&[ready("pod-1b"), ready("pod-2a"), ready("pod-2b")])];
            let everywhere = ["pod-1a", "pod-3a", "pod-3b", "node-1", "node-2", "node-3"];
            let expect = case.answers(&["pod-1b", "pod-2a", "pod-2b"]);
            vec![Step::new(objects).probe_from(&everywhere, case.vip(), &expect)]
        },
    ),
    Rule::new(
        "basic-node-port",
        Topic::Service,
        "A nodePort is served at every node, whether or not it has endpoints, for clients outside, pods and nodes.",
        |case| {
            let objects = [case.node_port_service(), case.slice(&[ready("pod-1b"), ready("pod-2a")])];
            let expect = case.answers(&["pod-1b", "pod-2a"]);
            vec![(0..NODES).fold(Step::new(objects), |step, node| {
                step.probe_from(
                    &["client", "pod-1a", "pod-3a", "node-1", "node-3"],
                    case.at_node(node),
                    &expect,
                )
            })]
        },
    ),
    Rule::new(
        "cluster-ip-per-family",
        Topic::Service,
        "Per family the cluster IP is the one at the family's place in ipFamilies; a dual-stack Service has one of each.",
        |case| {
            let families = if case.ipv4 { ["IPv4", "IPv6"] } else { ["IPv6", "IPv4"] };
            let ips = [case.ip_of(case.ipv4, 0), case.ip_of(!case.ipv4, 0)];
            let service = case
                .service()
                .with(json!({"spec": {"clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families}}));
            let other = super::Case { ipv4: !case.ipv4, ..*case };
            let slices = [
                case.slice(&[ready("pod-1b")]),
                case.slice_of(!case.ipv4, "web-other-family", &[ready("pod-2a")]),
            ];
            let to_other = (ips[1], PORT).into();
            vec![
                Step::new([service].into_iter().chain(slices))
                    .probe_from(&["pod-1a", "pod-3a", "node-2"], case.vip(), &case.answers(&["pod-1b"]))
                    .probe_from(&["pod-1a", "pod-3a", "node-2"], to_other, &other.answers(&["pod-2a"])),
            ]
        },
    ),
    Rule::new(
        "no-cluster-ip-no-family",
        Topic::Service,
        "A Service without a cluster IP of a family is not served in that family at all: neither its nodePorts nor its external \
         and load balancer IPs of that family.",
        |case| {
            let family = if case.ipv4 { "IPv6" } else { "IPv4" };
            let ip = case.ip_of(!case.ipv4, 0);
            let service = case
                .exposed()
                .with(json!({"spec": {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family]}}));
            let other = super::Case { ipv4: !case.ipv4, ..*case };
            let slices =
                [case.slice(&[ready("pod-1b")]), case.slice_of(!case.ipv4, "web-2", &[ready("pod-2a")])];
            let step = Step::new([service].into_iter().chain(slices)).probe(
                "pod-1a",
                (ip, PORT).into(),
                other.answers(&["pod-2a"]),
            );
            vec![
                case.outside_frontends(0)
                    .into_iter()
                    .fold(step, |step, to| step.probe_from(&["client", "pod-1a"], to, &Expect::Unserved)),
            ]
        },
    ),
    Rule::new(
        "multiple-ports",
        Topic::Service,
        "Each port of a Service has the endpoints whose slice port has its name and its protocol.",
        |case| {
            let ports = json!([port("a", "TCP", 81), port("b", "TCP", 82), port("b", "UDP", 82)]);
            let service = case.service().with(json!({"spec": {"ports": ports}}));
            let slice =
                |name, pod, ports| case.slice_named(name, &[ready(pod)]).with(json!({"ports": ports}));
            let slices = [
                slice("web-1", "pod-1b", json!([port("a", "TCP", 8080), port("b", "TCP", 8081)])),
                slice("web-2", "pod-2a", json!([port("b", "UDP", 8082), port("c", "TCP", 8080)])),
            ];
            let to = |port: u16| (case.ip(0), port).into();
            let (tcp, udp) = ([Protocol::Tcp], [Protocol::Udp]);
            let step = Step::new([service].into_iter().chain(slices));
            vec![["pod-1a", "pod-2b", "node-3"].into_iter().fold(step, |step, from| {
                step.probe_by(&tcp, from, to(81), case.answers(&["pod-1b:8080"]))
                    .probe_by(&tcp, from, to(82), case.answers(&["pod-1b:8081"]))
                    .probe_by(&udp, from, to(82), case.answers(&["pod-2a:8082"]))
            })]
        },
    ),
    Rule::new(
        "target-port-is-not-read",
        Topic::Service,
        "Connections go to the number in the slice: targetPort and appProtocol of the Service mean nothing to the proxy.",
        |case| {
            let further = json!({"targetPort": 9999, "appProtocol": "kubernetes.io/ws"});
            let ports = [port("tcp", "TCP", PORT), port("udp", "UDP", PORT)];
            let ports = ports.map(|port| super::Object(port).with(further.clone()).0);
            let service = case.service().with(json!({"spec": {"ports": ports}}));
            vec![Step::new([service, case.slice(&[ready("pod-2a")])]).probe_from(
                &["pod-1a", "node-1"],
                case.vip(),
                &case.answers(&["pod-2a:8080"]),
            )]
        },
    ),
    Rule::new(
        "unnamed-port",
        Topic::Service,
        "A Service's single port may have no name; it goes with slice ports whose name is the empty string.",
        |case| {
            let service =
                case.service().with(json!({"spec": {"ports": [{"protocol": "TCP", "port": PORT}]}}));
            let slice = case.slice(&[ready("pod-1b")]).with(json!({"ports": [port("", "TCP", TARGET)]}));
            vec![Step::new([service, slice]).probe_by(
                &[Protocol::Tcp],
                "pod-1a",
                case.vip(),
                case.answers(&["pod-1b"]),
            )]
        },
    ),
    Rule::new(
        "same-port-different-protocols",
        Topic::Service,
        "TCP and UDP may share a port number and a nodePort number, in one Service, each with its own endpoints.",
        |case| {
            let slice =
                |name, pod, port| case.slice_named(name, &[ready(pod)]).with(json!({"ports": [port]}));
            let slices = [
                slice("web-1", "pod-1b", port("tcp", "TCP", TARGET)),
                slice("web-2", "pod-2a", port("udp", "UDP", TARGET)),
            ];
            let step = Step::new([case.node_port_service()].into_iter().chain(slices));
            let probes = [("pod-1a", case.vip()), ("client", case.at_node(0)), ("node-2", case.at_node(1))];
            vec![probes.into_iter().fold(step, |step, (from, to)| {
                step.probe_by(&[Protocol::Tcp], from, to, case.answers(&["pod-1b"])).probe_by(
                    &[Protocol::Udp],
                    from,
                    to,
                    case.answers(&["pod-2a"]),
                )
            })]
        },
    ),
    Rule::new(
        "node-port-zero",
        Topic::Service,
        "A nodePort of 0 means no nodePort (allocateLoadBalancerNodePorts: false): the load balancer IP works \
         alone, and gets its nodePort \
         when one is allocated.",
        |case| {
            let none = case.exposed().with(json!({"spec": {
                "allocateLoadBalancerNodePorts": false,
                "ports": [port("tcp", "TCP", PORT), super::Object(port("udp", "UDP", PORT)).with(json!({"nodePort": 0})).0],
            }}));
            let slice = || case.slice(&[ready("pod-2a")]);
            let served = case.answers(&["pod-2a"]);
            vec![
                Step::new([none, slice()]).probe("client", case.load_balancer(0), served.clone()).probe(
                    "client",
                    case.at_node(0),
                    Expect::Unserved,
                ),
                Step::new([case.exposed(), slice()])
                    .probe("client", case.load_balancer(0), served.clone())
                    .probe("client", case.at_node(0), served),
            ]
        },
    ),
    Rule::new(
        "external-policy-applies",
        Topic::Service,
        "externalTrafficPolicy Local counts for types LoadBalancer and NodePort, and for ClusterIP with at least one external IP; \
         else it is Cluster.",
        |case| {
            let local = json!({"spec": {"type": "ClusterIP", "externalTrafficPolicy": "Local"}});
            let slice = || case.slice(&[ready("pod-2a")]);
            let without = case.exposed().with(local.clone()).with(json!({"spec": {"externalIPs": null}}));
            let with = case.exposed().with(local);
            vec![
                Step::new([without, slice()])
                    .probe("client", case.load_balancer(0), case.answers(&["pod-2a"]))
                    .probe("client", case.at_node(0), case.answers(&["pod-2a"])),
                Step::new([with, slice()])
                    .probe("client", case.external(0), Expect::NoLocalEndpoints)
                    .probe("client", case.load_balancer(0), Expect::NoLocalEndpoints)
                    .probe("client", case.external(1), case.answers(&["pod-2a"])),
            ]
        },
    ),
    Rule::new(
        "policies-are-independent",
        Topic::Service,
        "internalTrafficPolicy governs the cluster IP only, externalTrafficPolicy every other frontend only.",
        |case| {
            let slice = || case.slice(&[ready("pod-1b"), ready("pod-2a")]);
            let both = ["pod-1b", "pod-2a"];
            let internal = case.exposed().with(json!({"spec": {"internalTrafficPolicy": "Local"}}));
            let external = case.exposed().with(json!({"spec": {"externalTrafficPolicy": "Local"}}));
            let outside = |step: Step, endpoints: &[&str]| {
                case.outside_frontends(0)
                    .into_iter()
                    .fold(step, |step, to| step.probe("client", to, case.answers(endpoints)))
            };
            let step = Step::new([internal, slice()]).probe("pod-1a", case.vip(), case.answers(&["pod-1b"]));
            let inside = step.probe("node-2", case.vip(), case.answers(&["pod-2a"]));
            let step = Step::new([external, slice()]).probe("pod-1a", case.vip(), case.answers(&both));
            vec![outside(inside, &both), outside(step, &["pod-1b"])]
        },
    ),
    Rule::new(
        "not-ready-addresses",
        Topic::Service,
        "publishNotReadyAddresses is not read: the ready condition in the slice decides, which its controller sets.",
        |case| {
            let service = || case.service().with(json!({"spec": {"publishNotReadyAddresses": true}}));
            let published =
                ready("pod-1b").with(json!({"conditions": {"serving": false, "terminating": true}}));
            vec![
                Step::new([service(), case.slice(&[super::unready("pod-1b")])]).probe(
                    "pod-1a",
                    case.vip(),
                    Expect::Refused,
                ),
                Step::new([service(), case.slice(&[published])]).probe(
                    "pod-1a",
                    case.vip(),
                    case.answers(&["pod-1b"]),
                ),
                Step::new([case.service(), case.slice(&[super::dying("pod-1b")])]).probe(
                    "pod-1a",
                    case.vip(),
                    Expect::Refused,
                ),
            ]
        },
    ),
    Rule::new(
        "traffic-distribution",
        Topic::Service,
        "trafficDistribution and the annotation service.kubernetes.io/topology-mode are not read: only hints in slices count.",
        |case| {
            let service = case.service().with(json!({
                "metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}},
                "spec": {"trafficDistribution": "PreferSameNode"},
            }));
            vec![Step::new([service, case.slice(&[ready("pod-1b"), ready("pod-3a")])]).probe(
                "pod-1a",
                case.vip(),
                case.answers(&["pod-1b", "pod-3a"]),
            )]
        },
    ),
];
