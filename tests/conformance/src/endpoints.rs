//! Which endpoints get new connections.

use serde_json::json;

use super::{Case, Expect, Rule, Step, Topic, dying, ready, terminating, unready};

fn local(case: &Case) -> super::Object {
    case.exposed().with(json!({"spec": {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}}))
}

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "ready-only",
        Topic::Endpoints,
        "While any endpoint is ready, only ready ones get new connections, those among them that terminate included.",
        |case| {
            let ready_though = ready("pod-2a").with(json!({"conditions": {"terminating": true}}));
            let slice = case.slice(&[
                ready("pod-1b"),
                ready_though,
                terminating("pod-2b"),
                unready("pod-3a"),
                dying("pod-3b"),
            ]);
            let expect = case.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new([case.exposed(), slice])
                    .probe_from(&["pod-1a", "node-3"], case.vip(), &expect)
                    .probe_from(&["client"], case.at_node(2), &expect)
                    .probe_from(&["client"], case.load_balancer(0), &expect),
            ]
        },
    ),
    Rule::new(
        "terminating-fallback-cluster",
        Topic::Endpoints,
        "If none is ready, those that serve while they terminate get new connections, in the whole cluster (KEP-1669).",
        |case| {
            let slice = || {
                case.slice(&[terminating("pod-1b"), terminating("pod-2a"), unready("pod-2b"), dying("pod-3a")])
            };
            let expect = case.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new([case.exposed(), slice()])
                    .probe_from(&["pod-1a", "pod-3b", "node-3"], case.vip(), &expect)
                    .probe_from(&["client", "pod-1a"], case.at_node(0), &expect)
                    .probe_from(&["client", "node-3"], case.external(2), &expect),
            ]
        },
    ),
    Rule::new(
        "unready-is-never-used",
        Topic::Endpoints,
        "An endpoint that serves but is neither ready nor terminating is never used: without another the service refuses.",
        |case| {
            vec![
                Step::new([case.exposed(), case.slice(&[unready("pod-1b"), dying("pod-2a")])])
                    .probe_from(&["pod-1a", "node-2"], case.vip(), &Expect::Refused)
                    .probe_from(&["client", "pod-1a", "node-1"], case.at_node(0), &Expect::Refused)
                    .probe_from(&["client", "pod-1a", "node-1"], case.external(0), &Expect::Refused),
            ]
        },
    ),
    Rule::new(
        "terminating-fallback-local",
        Topic::Endpoints,
        "The fall-back of policy Local is the node's own: terminating local endpoints are used although ready ones are elsewhere.",
        |case| {
            let slice = case.slice(&[terminating("pod-1b"), dying("pod-1a"), ready("pod-2a"), terminating("pod-2b")]);
            let step = Step::new([local(case), slice])
                .probe_from(&["pod-1a", "node-1"], case.vip(), &case.answers(&["pod-1b"]))
                .probe_from(&["pod-2b", "node-2"], case.vip(), &case.answers(&["pod-2a"]));
            let step = case
                .outside_frontends(0)
                .into_iter()
                .fold(step, |step, to| step.probe("client", to, case.answers(&["pod-1b"])));
            vec![step.probe("client", case.at_node(1), case.answers(&["pod-2a"]))]
        },
    ),
    Rule::new(
        "internal-policy-local",
        Topic::Endpoints,
        "internalTrafficPolicy Local: pods and nodes reach the cluster IP's endpoints of their own node only; on a \
         node without one, packets are dropped (KEP-2086).",
        |case| {
            let service = case.service().with(json!({"spec": {"internalTrafficPolicy": "Local"}}));
            vec![
                Step::new([service, case.slice(&[ready("pod-1b"), ready("pod-2a"), ready("pod-2b")])])
                    .probe_from(&["pod-1a", "node-1"], case.vip(), &case.answers(&["pod-1b"]))
                    .probe("node-2", case.vip(), case.answers(&["pod-2a", "pod-2b"]))
                    .probe_from(&["pod-3a", "node-3"], case.vip(), &Expect::NoLocalEndpoints),
            ]
        },
    )
    .deviates(
        "A socket of a node without endpoints gets EHOSTUNREACH at once instead of a timeout; packets are dropped.",
    ),
    Rule::new(
        "internal-policy-local-host-network",
        Topic::Endpoints,
        "internalTrafficPolicy Local with endpoints in the host network: pods and the node itself reach their own node's.",
        |case| {
            let service = case.service().with(json!({"spec": {"internalTrafficPolicy": "Local"}}));
            vec![
                Step::new([service, case.slice(&[ready("node-1"), ready("node-2")])])
                    .probe_from(&["pod-1a", "node-1"], case.vip(), &case.answers(&["node-1"]))
                    .probe_from(&["pod-2a", "node-2"], case.vip(), &case.answers(&["node-2"]))
                    .probe_from(&["pod-3a", "node-3"], case.vip(), &Expect::NoLocalEndpoints),
            ]
        },
    ),
    Rule::new(
        "external-policy-local",
        Topic::Endpoints,
        "externalTrafficPolicy Local: clients outside reach the entry node's endpoints only, by nodePort, external \
         IP and load balancer IP; on a node without one, packets are dropped.",
        |case| {
            let service = case.exposed().with(json!({"spec": {"externalTrafficPolicy": "Local"}}));
            let step = Step::new([service, case.slice(&[ready("pod-1b"), ready("pod-2a"), ready("pod-2b")])]);
            let expect = [case.answers(&["pod-1b"]), case.answers(&["pod-2a", "pod-2b"]), Expect::NoLocalEndpoints];
            vec![expect.iter().enumerate().fold(step, |step, (node, expect)| {
                let frontends = case.outside_frontends(node).into_iter();
                frontends.fold(step, |step, to| step.probe("client", to, expect.clone()))
            })]
        },
    ),
    Rule::new(
        "external-policy-local-from-inside",
        Topic::Endpoints,
        "externalTrafficPolicy Local does not restrict clients inside: pods and the node itself reach all endpoints \
         by every \
         frontend, on nodes without endpoints as well.",
        |case| {
            let service = case.exposed().with(json!({"spec": {"externalTrafficPolicy": "Local"}}));
            let step = Step::new([service, case.slice(&[ready("pod-1b"), ready("pod-2a")])]);
            let expect = case.answers(&["pod-1b", "pod-2a"]);
            let step = step.probe_from(&["pod-1a", "node-1"], case.at_node(0), &expect);
            vec![[case.at_node(2), case.external(2), case.load_balancer(2)].into_iter().fold(
                step.probe_from(&["pod-3a", "node-3"], case.vip(), &expect),
                |step, to| step.probe_from(&["pod-3a", "node-3"], to, &expect),
            )]
        },
    )
    .deviates(
        "Inside means: of this node, by the hook. kube-proxy can count pods of other nodes as inside by their address \
         (--cluster-cidr); here a pod that asks another node's nodePort is outside there, as where its CNI masquerades it.",
    ),
    Rule::new(
        "no-endpoints-under-local",
        Topic::Endpoints,
        "Under policy Local too, a service without any endpoint in the cluster refuses; it drops only if other \
         nodes have some.",
        |case| {
            let step = |slice| {
                let step = Step::new([local(case), slice]);
                let froms = ["pod-3a", "node-3"];
                (step, froms)
            };
            let (empty, froms) = step(case.slice(&[unready("pod-1b")]));
            let (elsewhere, _) = step(case.slice(&[terminating("pod-1b")]));
            vec![
                empty
                    .probe_from(&froms, case.vip(), &Expect::Refused)
                    .probe("client", case.load_balancer(2), Expect::Refused),
                elsewhere
                    .probe_from(&froms, case.vip(), &Expect::NoLocalEndpoints)
                    .probe("client", case.load_balancer(2), Expect::NoLocalEndpoints),
            ]
        },
    ),
];
