//! Alerts, dashboard and runbooks agree with each other and with the agent's metrics.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use proxy_agent::{
    datapath::pins::Pins,
    flow_gc,
    model::{objects::Change, plan::IpFamily},
    observe::metrics::{Format, Metrics, Probe},
    socket_termination,
    source::{SourceState, kube::RequestCounts},
};
use proxy_common::layout::counter::Counter;
use serde_json::Value;

use super::root;

/// Metrics that Prometheus makes itself.
const PROMETHEUS: [&str; 1] = ["up"];
/// Metrics that appear in an agent's answer only when maps are pinned.
const FROM_MAPS: [&str; 2] = ["proxy_agent_map_capacity", "proxy_agent_packets_total"];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read("deploy/chart/files/alerts.yaml")).unwrap();
    file["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

fn text<'a>(rule: &'a Value, path: &str) -> &'a str {
    rule.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("{path} in {rule}"))
}

/// Names of samples in an agent's answer.
fn metrics() -> BTreeSet<String> {
    let (_, source) = tokio::sync::watch::channel(SourceState::default());
    let flows = flow_gc::Counts::default();
    flows.flows.get_or_create(&[("ip_family", "IPv4"), ("state", "new")]).set(0);
    let metrics = Metrics::new(
        Pins::new(Path::new("/nowhere")),
        source,
        &socket_termination::Counts::default(),
        &flows,
        &RequestCounts::default(),
    );
    // Families appear with their first member.
    metrics.queued(&Change::Service(Default::default()));
    metrics.queued(&Change::EndpointSlice(Default::default()));
    metrics.applied(Duration::ZERO, true);
    metrics.applied(Duration::ZERO, false);
    metrics.programmed(IpFamily::V4, SystemTime::now() + Duration::from_secs(1));
    metrics.set_usage(&Default::default());
    metrics.set_no_local_endpoints(IpFamily::V4, 0, 0);
    metrics.probed(Probe::Healthz, 200);
    metrics.probed(Probe::Livez, 200);
    let text = metrics.encode(Format::Prometheus).unwrap();
    let samples =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(['{', ' ']).next().unwrap());
    // Families without a member here have their type.
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    samples.chain(types).chain(FROM_MAPS).chain(PROMETHEUS).map(str::to_owned).collect()
}

/// Names of metrics in an expression: words before a selector, or that look like one of ours.
fn named(expression: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names = BTreeSet::new();
    let mut rest = expression;
    while let Some(start) = rest.find(is_word) {
        let word = &rest[start..];
        let end = word.find(|c| !is_word(c)).unwrap_or(word.len());
        let (word, after) = word.split_at(end);
        if after.starts_with('{') || word.starts_with("proxy_agent_") || word.starts_with("kubeproxy_") {
            names.insert(word.to_owned());
        }
        rest = after;
        // A string in quotes names no metric.
        if let Some(inner) = rest.strip_prefix("=\"").or_else(|| rest.strip_prefix("=~\"")) {
            rest = inner.split_once('"').map_or("", |(_, rest)| rest);
        }
    }
    names
}

/// Values of the label `event` in an expression.
fn events(expression: &str) -> Vec<String> {
    let of = |pattern: &str| {
        expression
            .split(pattern)
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let lists = [of("event=\""), of("event=~\"")].concat();
    lists.iter().flat_map(|list| list.split('|')).map(str::to_owned).collect()
}

fn check(what: &str, expression: &str) {
    let there = metrics();
    let names = named(expression);
    assert!(!names.is_empty(), "{what}: no metric is found in {expression}");
    for name in names {
        assert!(there.contains(&name), "{what}: the agent has no metric {name}");
    }
    let counters: BTreeSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
    for event in events(expression) {
        assert!(counters.contains(&*event), "{what}: the programs count no {event}");
    }
}

#[test]
fn alerts_name_metrics_that_exist() {
    for rule in rules() {
        check(text(&rule, "/alert"), text(&rule, "/expr"));
    }
}

#[test]
fn the_dashboard_names_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&read("deploy/chart/files/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 10);
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            check(text(panel, "/title"), text(target, "/expr"));
        }
    }
}

#[test]
fn each_alert_has_its_runbook_and_each_runbook_its_alert() {
    let rules = rules();
    let alerts: Vec<_> = rules.iter().map(|rule| text(rule, "/alert").to_owned()).collect();
    let runbooks = read("docs/runbooks.md");
    let paragraphs: Vec<_> = runbooks.split("\n## ").skip(1).collect();
    let headings: Vec<_> = paragraphs.iter().map(|text| text.lines().next().unwrap().to_owned()).collect();
    assert_eq!(headings, alerts, "in the same order");
    for (heading, paragraph) in headings.iter().zip(&paragraphs) {
        assert!(paragraph.len() > heading.len() + 100, "{heading} has no text");
    }
    for rule in &rules {
        let anchor = format!("RUNBOOKS#{}", text(rule, "/alert").to_lowercase());
        assert_eq!(text(rule, "/annotations/runbook_url"), anchor);
        assert!(text(rule, "/annotations/summary").ends_with('.'));
        assert!(["critical", "warning", "info"].contains(&text(rule, "/labels/severity")));
    }
}

#[test]
fn mistakes_are_found() {
    assert_eq!(
        named(
            "rate(proxy_agent_nothing{job=\"proxy_agent_x\",event=\"no_route\"}[5m]) / on (instance) down{a=\"b\"}"
        ),
        ["down", "proxy_agent_nothing"].map(str::to_owned).into()
    );
    assert_eq!(events("a{event=~\"one|two\"} + b{event=\"three\"}"), ["three", "one", "two"]);
    let there = metrics();
    assert!(!there.contains("proxy_agent_nothing") && there.contains("proxy_agent_hook_failures"));
}
