//! Which endpoints get new connections.

use serde_json::json;

use super::{Expect, Rule, Site, Step, Topic, dying, ready, terminating, unready};

fn local(site: &Site) -> super::Object {
    site.exposed().with(json!({"spec": {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}}))
}

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "ready-only",
        Topic::Endpoints,
        "While any endpoint is ready, only ready ones get new connections, those among them that terminate included.",
        |site| {
            let ready_though = ready("pod-2a").with(json!({"conditions": {"terminating": true}}));
            let slice = site.slice(&[
                ready("pod-1b"),
                ready_though,
                terminating("pod-2b"),
                unready("pod-3a"),
                dying("pod-3b"),
            ]);
            let expect = site.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new([site.exposed(), slice])
                    .probe_from(&["pod-1a", "node-3"], site.vip(), &expect)
                    .probe_from(&["client"], site.at_node(2), &expect)
                    .probe_from(&["client"], site.load_balancer(0), &expect),
            ]
        },
    ),
    Rule::new(
        "terminating-fallback-cluster",
        Topic::Endpoints,
        "If none is ready, those that serve while they terminate get new connections, in the whole cluster (KEP-1669).",
        |site| {
            let slice = || {
                site.slice(&[terminating("pod-1b"), terminating("pod-2a"), unready("pod-2b"), dying("pod-3a")])
            };
            let expect = site.answers(&["pod-1b", "pod-2a"]);
            vec![
                Step::new([site.exposed(), slice()])
                    .probe_from(&["pod-1a", "pod-3b", "node-3"], site.vip(), &expect)
                    .probe_from(&["client", "pod-1a"], site.at_node(0), &expect)
                    .probe_from(&["client", "node-3"], site.external(2), &expect),
            ]
        },
    ),
    Rule::new(
        "unready-is-never-used",
        Topic::Endpoints,
        "An endpoint that serves but is neither ready nor terminating is never used: without another the service refuses.",
        |site| {
            vec![
                Step::new([site.exposed(), site.slice(&[unready("pod-1b"), dying("pod-2a")])])
                    .probe_from(&["pod-1a", "node-2"], site.vip(), &Expect::Refused)
                    .probe_from(&["client", "pod-1a", "node-1"], site.at_node(0), &Expect::Refused)
                    .probe_from(&["client", "pod-1a", "node-1"], site.external(0), &Expect::Refused),
            ]
        },
    ),
    Rule::new(
        "terminating-fallback-local",
        Topic::Endpoints,
        "The fall-back of policy Local is the node's own: terminating local endpoints are used although ready ones are elsewhere.",
        |site| {
            let slice = site.slice(&[terminating("pod-1b"), dying("pod-1a"), ready("pod-2a"), terminating("pod-2b")]);
            let step = Step::new([local(site), slice])
                .probe_from(&["pod-1a", "node-1"], site.vip(), &site.answers(&["pod-1b"]))
                .probe_from(&["pod-2b", "node-2"], site.vip(), &site.answers(&["pod-2a"]));
            let step = site
                .outside_frontends(0)
                .into_iter()
                .fold(step, |step, to| step.probe("client", to, site.answers(&["pod-1b"])));
            vec![step.probe("client", site.at_node(1), site.answers(&["pod-2a"]))]
        },
    ),
    Rule::new(
        "internal-policy-local",
        Topic::Endpoints,
        "internalTrafficPolicy Local: pods and nodes reach the cluster IP's endpoints of their own node only; where there is none, \
         packets are dropped (KEP-2086).",
        |site| {
            let service = site.service().with(json!({"spec": {"internalTrafficPolicy": "Local"}}));
            vec![
                Step::new([service, site.slice(&[ready("pod-1b"), ready("pod-2a"), ready("pod-2b")])])
                    .probe_from(&["pod-1a", "node-1"], site.vip(), &site.answers(&["pod-1b"]))
                    .probe("node-2", site.vip(), site.answers(&["pod-2a", "pod-2b"]))
                    .probe_from(&["pod-3a", "node-3"], site.vip(), &Expect::Withheld),
            ]
        },
    )
    .deviates(
        "A socket of a node without endpoints learns EHOSTUNREACH at once instead of waiting for a drop that nobody tells it \
         of; packets are dropped.",
    ),
    Rule::new(
        "internal-policy-local-host-network",
        Topic::Endpoints,
        "internalTrafficPolicy Local with endpoints in the host network: pods and the node itself reach their own node's.",
        |site| {
            let service = site.service().with(json!({"spec": {"internalTrafficPolicy": "Local"}}));
            vec![
                Step::new([service, site.slice(&[ready("node-1"), ready("node-2")])])
                    .probe_from(&["pod-1a", "node-1"], site.vip(), &site.answers(&["node-1"]))
                    .probe_from(&["pod-2a", "node-2"], site.vip(), &site.answers(&["node-2"]))
                    .probe_from(&["pod-3a", "node-3"], site.vip(), &Expect::Withheld),
            ]
        },
    ),
    Rule::new(
        "external-policy-local",
        Topic::Endpoints,
        "externalTrafficPolicy Local: clients outside reach the entry node's endpoints only, by nodePort, external IP and load \
         balancer IP; where there is none, packets are dropped.",
        |site| {
            let service = site.exposed().with(json!({"spec": {"externalTrafficPolicy": "Local"}}));
            let step = Step::new([service, site.slice(&[ready("pod-1b"), ready("pod-2a"), ready("pod-2b")])]);
            let expect = [site.answers(&["pod-1b"]), site.answers(&["pod-2a", "pod-2b"]), Expect::Withheld];
            vec![expect.iter().enumerate().fold(step, |step, (node, expect)| {
                let frontends = site.outside_frontends(node).into_iter();
                frontends.fold(step, |step, to| step.probe("client", to, expect.clone()))
            })]
        },
    ),
    Rule::new(
        "external-policy-local-from-inside",
        Topic::Endpoints,
        "externalTrafficPolicy Local keeps nobody inside from the service: pods and the node itself reach all endpoints by every \
         frontend, on nodes without endpoints as well.",
        |site| {
            let service = site.exposed().with(json!({"spec": {"externalTrafficPolicy": "Local"}}));
            let step = Step::new([service, site.slice(&[ready("pod-1b"), ready("pod-2a")])]);
            let expect = site.answers(&["pod-1b", "pod-2a"]);
            let step = step.probe_from(&["pod-1a", "node-1"], site.at_node(0), &expect);
            vec![[site.at_node(2), site.external(2), site.load_balancer(2)].into_iter().fold(
                step.probe_from(&["pod-3a", "node-3"], site.vip(), &expect),
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
        "Under policy Local too, a service without any endpoint in the cluster refuses; it drops only where there are some \
         elsewhere.",
        |site| {
            let step = |slice| {
                let step = Step::new([local(site), slice]);
                let froms = ["pod-3a", "node-3"];
                (step, froms)
            };
            let (empty, froms) = step(site.slice(&[unready("pod-1b")]));
            let (elsewhere, _) = step(site.slice(&[terminating("pod-1b")]));
            vec![
                empty
                    .probe_from(&froms, site.vip(), &Expect::Refused)
                    .probe("client", site.load_balancer(2), Expect::Refused),
                elsewhere
                    .probe_from(&froms, site.vip(), &Expect::Withheld)
                    .probe("client", site.load_balancer(2), Expect::Withheld),
            ]
        },
    ),
];
