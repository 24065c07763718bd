use std::path::Path;

use super::*;
use crate::{
    model::objects::{EndpointSlice, ObjectName, Service},
    source::Release,
};

fn metrics() -> Metrics {
    let (_, source) = watch::channel(SourceState::default());
    Metrics::new(
        Pins::new(Path::new("/nowhere")),
        source,
        &socket_termination::Counts::default(),
        &flow_gc::Counts::default(),
        &RequestCounts::default(),
    )
}

fn assert_lines(metrics: &Metrics, lines: &[&str]) {
    let text = metrics.encode(Format::Prometheus).unwrap();
    for line in lines {
        assert!(text.lines().any(|other| other == *line), "{line} is missing in:\n{text}");
    }
}

#[test]
fn the_process_and_the_release_of_the_api_server_are_shown() {
    let release = Release { major: "1".into(), minor: "35".into(), git_version: "v1.35.1".into() };
    let (_state, source) = watch::channel(SourceState { release: Some(release), ..SourceState::default() });
    let metrics = Metrics::new(
        Pins::new(Path::new("/nowhere")),
        source,
        &socket_termination::Counts::default(),
        &flow_gc::Counts::default(),
        &RequestCounts::default(),
    );
    let text = metrics.encode(Format::Prometheus).unwrap();
    let release = format!(
        "kubernetes_build_info{{major=\"1\",minor=\"35\",git_version=\"v1.35.1\",compiler=\"rustc\",platform=\"{}\"}} 1",
        crate::PLATFORM
    );
    assert!(text.lines().any(|line| line == release), "{text}");
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing in {text}")).parse().unwrap()
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(value("process_cpu_seconds_total") >= 0.0);
    // The boot time is one of whole seconds.
    assert!((now - 3600.0..now + 2.0).contains(&value("process_start_time_seconds")));
    assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_max_fds") >= value("process_open_fds") && value("process_open_fds") >= 3.0);
}

#[test]
fn hooks_and_usage_are_those_of_now() {
    let metrics = metrics();
    let hook = |at: &str| Hook { at: at.into(), program: "uplink_ingress".into(), how: "tcx" };
    metrics.set_hooks(&[hook("eth0"), hook("eth1")], 1);
    let pods = ["veth1", "veth2"].map(|at| Hook { at: at.into(), program: "pod_egress".into(), how: "tcx" });
    metrics.set_hooks([&hook("eth1")].into_iter().chain(&pods), 0);
    metrics.set_usage(&Usage { service_ports: 2, backends: 3, slots: [5, 0], frontends: 4 });
    metrics.set_service_health_failures(2);
    metrics.set_network_problems(1);
    assert_lines(
        &metrics,
        &[
            "proxy_agent_hooks{at=\"eth1\",program=\"uplink_ingress\",how=\"tcx\"} 1",
            "proxy_agent_hooks{at=\"pods\",program=\"pod_egress\",how=\"tcx\"} 2",
            "proxy_agent_hook_failures 0",
            "proxy_agent_service_health_failures 2",
            "proxy_agent_network_problems 1",
            "proxy_agent_service_ports 2",
            "proxy_agent_frontends 4",
            "proxy_agent_map_entries{map=\"backends_v4\"} 5",
            "proxy_agent_source_synced 0",
            concat!("proxy_agent_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ],
    );
    let text = metrics.encode(Format::OpenMetrics).unwrap();
    assert!(!text.contains("eth0"), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn changes_are_pending_until_looked_at() {
    let metrics = metrics();
    let name = || ObjectName::new("default", "web");
    metrics.queued(&Change::Service(Service::default()));
    metrics.queued(&Change::EndpointSlice(EndpointSlice { ipv6: true, ..EndpointSlice::default() }));
    metrics.queued(&Change::EndpointSliceGone(name()));
    metrics.queued(&Change::NodeGone);
    let pending = |kind: &str, family: &str, count: u32| {
        format!("kubeproxy_sync_proxy_rules_{kind}_changes_pending{{ip_family=\"{family}\"}} {count}")
    };
    for (kind, family, count) in
        [("service", "IPv4", 1), ("service", "IPv6", 1), ("endpoint", "IPv4", 1), ("endpoint", "IPv6", 2)]
    {
        let total = pending(kind, family, count).replace("pending", "total");
        assert_lines(&metrics, &[&pending(kind, family, count), &total]);
    }
    metrics.failed();
    assert_lines(
        &metrics,
        &[
            &pending("endpoint", "IPv6", 0),
            "kubeproxy_sync_proxy_rules_endpoint_changes_total{ip_family=\"IPv6\"} 2",
            "proxy_agent_apply_errors_total 1",
        ],
    );
}

#[test]
fn rounds_are_measured_apart_when_they_are_full() {
    let metrics = metrics();
    metrics.applied(Duration::from_millis(3), true);
    metrics.applied(Duration::from_millis(1), false);
    metrics.applied(Duration::from_millis(1), false);
    let count = |name: &str, count: u32| {
        format!("kubeproxy_sync_{name}_duration_seconds_count{{ip_family=\"IPv6\"}} {count}")
    };
    assert_lines(
        &metrics,
        &[&count("proxy_rules", 3), &count("full_proxy_rules", 1), &count("partial_proxy_rules", 2)],
    );
}

#[test]
fn latency_counts_from_the_trigger_and_not_for_what_was_before() {
    let metrics = metrics();
    metrics.programmed(IpFamily::V4, SystemTime::UNIX_EPOCH);
    metrics.programmed(IpFamily::V4, SystemTime::now());
    metrics.programmed(IpFamily::V4, SystemTime::now() + Duration::from_secs(60));
    let text = metrics.encode(Format::Prometheus).unwrap();
    let prefix = "kubeproxy_network_programming_duration_seconds_bucket{le=\"";
    let bounds: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(prefix)?.split_once('"')?.0.parse().ok())
        .filter(|bound: &f64| bound.is_finite() && *bound < f64::from(f32::MAX))
        .collect();
    assert_eq!(bounds.len(), 3 + 59 + 12 + 7, "{text}");
    assert_eq!(bounds[..4], [0.0, 0.25, 0.5, 1.0]);
    assert_eq!(bounds[61..64], [59.0, 60.0, 65.0]);
    assert_eq!(bounds[73..76], [115.0, 120.0, 150.0]);
    assert_eq!(bounds.last(), Some(&300.0));
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 2";
    assert_lines(&metrics, &[count]);
}

#[test]
fn local_policies_without_local_endpoints_are_a_gauge() {
    let metrics = metrics();
    metrics.set_no_local_endpoints(IpFamily::V6, 3, 1);
    metrics.set_no_local_endpoints(IpFamily::V6, 2, 1);
    assert_lines(
        &metrics,
        &[
            "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"internal\"} 2",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 1",
        ],
    );
}
