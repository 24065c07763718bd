//! Which objects are read at all.

use serde_json::json;

use super::{Expect, Rule, Step, Topic, ready};

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "service-proxy-name",
        Topic::Watch,
        "A Service with the label service.kubernetes.io/service-proxy-name, whatever its value, belongs to another proxy; \
         adding the label removes the service, taking it away brings it back.",
        |case| {
            let objects = |labels| {
                let service = case.node_port_service().with(json!({"metadata": {"labels": labels}}));
                [service, case.slice(&[ready("pod-1b")])]
            };
            let served = |step: Step| {
                step.probe_from(&["pod-1a", "pod-2a", "node-1"], case.vip(), &case.answers(&["pod-1b"]))
                    .probe("client", case.at_node(0), case.answers(&["pod-1b"]))
            };
            let unserved = |step: Step| {
                step.probe_from(&["pod-1a", "pod-2a", "node-1"], case.vip(), &Expect::Unserved).probe(
                    "client",
                    case.at_node(0),
                    Expect::Unserved,
                )
            };
            let label = |value: &str| json!({"service.kubernetes.io/service-proxy-name": value});
            vec![
                unserved(Step::new(objects(label("other-proxy")))),
                served(Step::new(objects(json!(null)))),
                unserved(Step::new(objects(label("")))),
                served(Step::new(objects(json!({"app": "web"})))),
            ]
        },
    ),
    Rule::new(
        "headless-service",
        Topic::Watch,
        "A headless Service (clusterIP None) has no frontends, its external IPs included.",
        |case| {
            let service = case.exposed().with(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
            vec![
                Step::new([service, case.slice(&[ready("pod-1b")])])
                    .probe("pod-1a", case.external(0), Expect::Unserved)
                    .probe("client", case.load_balancer(0), Expect::Unserved)
                    .probe("client", case.at_node(0), Expect::Unserved),
            ]
        },
    ),
    Rule::new(
        "headless-slice",
        Topic::Watch,
        "EndpointSlices with the label service.kubernetes.io/headless are not read; adding the label to all slices of a \
         Service leaves it without endpoints.",
        |case| {
            let objects = |labels| {
                [case.service(), case.slice(&[ready("pod-1b")]).with(json!({"metadata": {"labels": labels}}))]
            };
            let headless = json!({"service.kubernetes.io/headless": ""});
            vec![
                Step::new(objects(json!({}))).probe("pod-1a", case.vip(), case.answers(&["pod-1b"])),
                Step::new(objects(headless)).probe("pod-1a", case.vip(), Expect::Refused),
                Step::new(objects(json!({}))).probe("pod-1a", case.vip(), case.answers(&["pod-1b"])),
            ]
        },
    ),
    Rule::new(
        "slice-of-a-service",
        Topic::Watch,
        "An EndpointSlice belongs to the Service of its own namespace that the label kubernetes.io/service-name \
         names; one without the label belongs to no Service.",
        |case| {
            let unlabelled = case
                .slice_named("web-2", &[ready("pod-2a")])
                .with(json!({"metadata": {"labels": {"kubernetes.io/service-name": null}}}));
            let others = case
                .slice_named("web-3", &[ready("pod-2b")])
                .with(json!({"metadata": {"labels": {"kubernetes.io/service-name": "another"}}}));
            let elsewhere = case
                .slice_named("web-1", &[ready("pod-3a")])
                .with(json!({"metadata": {"namespace": format!("{}-elsewhere", case.namespace())}}));
            vec![
                Step::new([case.service(), case.slice(&[ready("pod-1b")]), unlabelled, others, elsewhere])
                    .probe_from(&["pod-1a", "node-2"], case.vip(), &case.answers(&["pod-1b"])),
            ]
        },
    ),
    Rule::by_tests(
        "first-lists",
        Topic::Watch,
        "Nothing is programmed or removed until Services and EndpointSlices were both listed completely.",
        &[
            "proxy-agent: a_complete_list_removes_what_it_does_not_name",
            "proxy-tests: a_list_that_breaks_off_does_not_count",
        ],
    ),
    Rule::by_tests(
        "least-privilege",
        Topic::Watch,
        "No Endpoints, Pods, Namespaces or Secrets are read.",
        &["proxy-tests: the_role_allows_exactly_the_watched_resources_and_events"],
    ),
];
