//! `sessionAffinity`.

use std::time::Duration;

use serde_json::json;

use super::{Object, Rule, Step, Topic, ready};

const AT_ONCE: Duration = Duration::ZERO;

fn sticky(service: Object, seconds: u32) -> Object {
    service.with(json!({"spec": {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    }}))
}

const PODS: [&str; 3] = ["pod-1b", "pod-2a", "pod-2b"];

pub(super) const RULES: &[Rule] = &[
    Rule::new(
        "affinity",
        Topic::Affinity,
        "sessionAffinity ClientIP: a client keeps its endpoint from connection to connection, by every frontend.",
        |case| {
            let step = Step::new([sticky(case.exposed(), 10800), case.slice(&PODS.map(ready))]);
            let expect = case.sticky(&PODS, AT_ONCE);
            let step = step.probe_from(&["pod-1a", "pod-3a", "node-1"], case.vip(), &expect);
            vec![
                case.outside_frontends(0)
                    .into_iter()
                    .fold(step, |step, to| step.probe_from(&["client", "pod-1a", "node-1"], to, &expect)),
            ]
        },
    ),
    Rule::new(
        "affinity-is-per-client",
        Topic::Affinity,
        "Affinity is per client: each client has one endpoint, different clients may have different ones.",
        |case| {
            // Every one of nine clients is sticky by itself; that they do not all share one is for the unit tests.
            let froms = ["pod-1a", "pod-1b", "pod-2a", "pod-2b", "pod-3a", "pod-3b", "node-2", "node-3"];
            vec![
                Step::new([sticky(case.service(), 600), case.slice(&[ready("node-1"), ready("node-2")])])
                    .probe_from(&froms, case.vip(), &case.sticky(&["node-1", "node-2"], AT_ONCE)),
            ]
        },
    ),
    Rule::new(
        "affinity-across-frontends",
        Topic::Affinity,
        "A client's endpoint is the same by all frontends of a service port.",
        |case| {
            let step = Step::new([sticky(case.exposed(), 10800), case.slice(&PODS.map(ready))]);
            let expect = || case.sticky(&PODS, AT_ONCE);
            let all = [case.vip()].into_iter().chain(case.outside_frontends(0));
            let step = all.fold(step, |step, to| step.probe("pod-1a", to, expect()).agreeing("pod"));
            let outside = case.outside_frontends(1).into_iter();
            vec![outside.fold(step, |step, to| step.probe("client", to, expect()).agreeing("client"))]
        },
    ),
    Rule::new(
        "affinity-switched",
        Topic::Affinity,
        "Affinity may be switched on and off while the service works.",
        |case| {
            let slice = || case.slice(&PODS.map(ready));
            let spread = || {
                Step::new([case.node_port_service(), slice()])
                    .probe_from(&["pod-1a", "node-1"], case.vip(), &case.answers(&PODS))
                    .probe("client", case.at_node(0), case.answers(&PODS))
            };
            let sticks = Step::new([sticky(case.node_port_service(), 10800), slice()])
                .probe_from(&["pod-1a", "node-1"], case.vip(), &case.sticky(&PODS, AT_ONCE))
                .probe("client", case.at_node(0), case.sticky(&PODS, AT_ONCE));
            vec![spread(), sticks, spread()]
        },
    ),
    Rule::new(
        "affinity-timeout",
        Topic::Affinity,
        "A client that opens no connection for timeoutSeconds is given any endpoint again.",
        |case| {
            let idle = Duration::from_millis(1300);
            vec![
                Step::new([sticky(case.node_port_service(), 1), case.slice(&PODS.map(ready))])
                    .probe("pod-1a", case.vip(), case.repicked(&PODS, idle))
                    .probe("client", case.at_node(0), case.repicked(&PODS, idle)),
            ]
        },
    ),
    Rule::new(
        "affinity-is-refreshed",
        Topic::Affinity,
        "Each new connection restarts the timeout.",
        |case| {
            let busy = Duration::from_millis(900);
            vec![
                Step::new([sticky(case.node_port_service(), 4), case.slice(&PODS.map(ready))])
                    .probe("pod-1a", case.vip(), case.sticky(&PODS, busy))
                    .probe("client", case.at_node(0), case.sticky(&PODS, busy)),
            ]
        },
    ),
    Rule::new(
        "affinity-without-its-endpoint",
        Topic::Affinity,
        "A client whose endpoint is not among those to choose any more gets another, at once.",
        |case| {
            let with =
                |endpoints: &[_]| Step::new([sticky(case.node_port_service(), 10800), case.slice(endpoints)]);
            let unready = [super::unready("pod-1b"), super::unready("pod-2a"), ready("pod-2b")];
            vec![
                with(&[ready("pod-1b"), ready("pod-2a")])
                    .probe_from(
                        &["pod-1a", "node-3"],
                        case.vip(),
                        &case.sticky(&["pod-1b", "pod-2a"], AT_ONCE),
                    )
                    .probe("client", case.at_node(0), case.sticky(&["pod-1b", "pod-2a"], AT_ONCE)),
                with(&unready)
                    .probe_from(&["pod-1a", "node-3"], case.vip(), &case.answers(&["pod-2b"]))
                    .probe("client", case.at_node(0), case.answers(&["pod-2b"])),
            ]
        },
    ),
    Rule::new(
        "affinity-and-policy-local",
        Topic::Affinity,
        "Affinity chooses among the endpoints that the traffic policy allows.",
        |case| {
            let policies =
                json!({"spec": {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}});
            let service = sticky(case.exposed(), 10800).with(policies);
            let slice = case.slice(&[ready("pod-1a"), ready("pod-1b"), ready("pod-2a"), ready("pod-3a")]);
            vec![
                Step::new([service, slice])
                    .probe("node-1", case.vip(), case.sticky(&["pod-1a", "pod-1b"], AT_ONCE))
                    .probe("pod-2b", case.vip(), case.sticky(&["pod-2a"], AT_ONCE))
                    .probe("client", case.load_balancer(0), case.sticky(&["pod-1a", "pod-1b"], AT_ONCE)),
            ]
        },
    ),
    Rule::by_tests(
        "affinity-default-timeout",
        Topic::Affinity,
        "The timeout is 10800 s unless given, and a day at most.",
        &["proxy-agent: affinity_lasts_three_hours_by_default_and_a_day_at_most"],
    ),
    Rule::by_tests(
        "affinity-per-port",
        Topic::Affinity,
        "A client's endpoint is kept per service port: ports of one Service do not share it.",
        &["proxy-tests: ports_of_a_service_do_not_share_a_clients_endpoint"],
    ),
];
