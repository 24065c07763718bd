use std::{net::SocketAddr, path::Path, time::Duration};

use serde_json::json;
use tokio::{net::TcpStream, sync::watch};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    datapath::pins::Pins,
    observe::{
        Listeners,
        http::Server,
        test_client::{get, request, start},
    },
    source::SourceState,
};

struct Agent {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    source: watch::Sender<SourceState>,
}

impl Agent {
    fn new() -> Self {
        let (source, state) = watch::channel(SourceState::default());
        let health = Arc::new(Health::new(state.clone(), Duration::ZERO));
        let metrics = Arc::new(Metrics::new(
            Pins::new(Path::new("/nowhere")),
            state,
            &crate::socket_termination::Counts::default(),
            &crate::flow_gc::Counts::default(),
            &crate::source::kube::RequestCounts::default(),
        ));
        Self { health, metrics, source }
    }

    fn health(&self) -> Handler {
        health(&self.health, &self.metrics)
    }

    fn metrics(&self) -> Handler {
        metrics(&self.metrics, &self.health, &json!({"kubeproxy.config.k8s.io": {"mode": "ebpf"}}), "node-1")
    }
}

#[tokio::test]
async fn health_follows_the_work_and_the_node() {
    let (agent, cancel) = (Agent::new(), CancellationToken::new());
    let address = start(agent.health(), &cancel).await;
    let both = async || (get(address, "/healthz").await.status, get(address, "/livez").await.status);
    assert_eq!(both().await, (503, 200), "before the first sync");
    agent.health.applied();
    assert_eq!(both().await, (200, 200));
    agent.health.set_node_eligible(false);
    assert_eq!(both().await, (503, 200), "the node goes");
    agent.health.set_node_eligible(true);
    for path in ["/healthz", "/livez"] {
        let got = get(address, path).await;
        assert!(got.head.contains("content-type: application/json"), "{got:?}");
        assert!(got.head.contains("x-content-type-options: nosniff"), "{got:?}");
        assert!(got.body.contains("lastUpdated"), "{got:?}");
        let json: Value = serde_json::from_str(&got.body).unwrap();
        assert_eq!(json["healthy"], true);
        assert_eq!(json.get("nodeEligible").is_some(), path == "/healthz");
    }
    assert_eq!(request(address, "POST", "/healthz", "").await.status, 405, "not counted");

    let scraped = agent.metrics.encode(Format::Prometheus).unwrap();
    for line in [
        "kubeproxy_proxy_healthz_total{code=\"200\"} 2",
        "kubeproxy_proxy_healthz_total{code=\"503\"} 2",
        "kubeproxy_proxy_livez_total{code=\"200\"} 4",
    ] {
        assert!(scraped.lines().any(|other| other == line), "{line} is missing in:\n{scraped}");
    }
    cancel.cancel();
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let (agent, cancel) = (Agent::new(), CancellationToken::new());
    let address = start(agent.metrics(), &cancel).await;
    for (method, path, expected) in [
        ("GET", "/", 404),
        ("GET", "/livez", 404),
        ("POST", "/nothing", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/proxyMode", 405),
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics?format=text", 200),
        ("GET", "/healthz", 503),
    ] {
        let got = request(address, method, path, "").await;
        assert_eq!(got.status, expected, "{method} {path}");
        assert_eq!(got.head.contains("allow: get, head"), expected == 405);
        assert!(method != "HEAD" || got.body.is_empty());
    }
    cancel.cancel();
}

#[tokio::test]
async fn mode_and_configuration_are_shown() {
    let (agent, cancel) = (Agent::new(), CancellationToken::new());
    let address = start(agent.metrics(), &cancel).await;
    let mode = get(address, "/proxyMode").await;
    assert_eq!((mode.status, mode.body.as_str()), (200, "ebpf"));
    let config = get(address, "/configz").await;
    assert!(config.head.contains("content-type: application/json"), "{config:?}");
    let json: Value = serde_json::from_str(&config.body).unwrap();
    assert_eq!(json["kubeproxy.config.k8s.io"]["mode"], "ebpf");
    cancel.cancel();
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let (agent, cancel) = (Agent::new(), CancellationToken::new());
    let address = start(agent.metrics(), &cancel).await;
    agent.metrics.applied(Duration::from_millis(3), true);
    agent.metrics.failed();
    agent.source.send_modify(|state| {
        state.watches.entry("services".into()).or_default().synced = true;
    });
    for (accept, content_type, kind) in [
        ("", "text/plain; version=0.0.4", "# TYPE proxy_agent_apply_errors_total counter"),
        (
            "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.3\r\n",
            "application/openmetrics-text",
            "# TYPE proxy_agent_apply_errors counter",
        ),
    ] {
        let got = request(address, "GET", "/metrics", accept).await;
        assert!(got.head.contains(&format!("content-type: {content_type}")), "{}", got.head);
        for line in [
            kind,
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "proxy_agent_apply_errors_total 1",
            "proxy_agent_source_synced 1",
        ] {
            assert!(got.body.lines().any(|other| other == line), "{line} is missing in:\n{}", got.body);
        }
    }
    cancel.cancel();
}

/// A server at an address, and the failures that it reports.
fn server(
    agent: &Agent,
    address: SocketAddr,
    must_bind: bool,
) -> (Server, std::sync::mpsc::Receiver<String>) {
    let (sender, reasons) = std::sync::mpsc::channel();
    let on_failure = Box::new(move |why: &str| sender.send(why.to_owned()).unwrap());
    (Server { what: "health checks", address, handler: agent.health(), must_bind, on_failure }, reasons)
}

#[tokio::test(start_paused = true)]
async fn a_taken_address_is_tried_again() {
    let cancel = CancellationToken::new();
    let blocker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = blocker.local_addr().unwrap();
    let (server, reasons) = server(&Agent::new(), address, false);
    server.start(&Listeners::default(), cancel.clone()).await.unwrap();
    let why = reasons.try_recv().unwrap();
    assert!(why.contains("health checks") && why.contains("in use"), "{why}");
    drop(blocker);
    // Time is paused: it runs ahead to the next attempt.
    tokio::time::sleep(Duration::from_secs(6)).await;
    TcpStream::connect(address).await.unwrap();
    cancel.cancel();
}

#[tokio::test]
async fn a_taken_address_is_an_error_where_it_must_be_had() {
    let blocker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (server, reasons) = server(&Agent::new(), blocker.local_addr().unwrap(), true);
    let error = server.start(&Listeners::default(), CancellationToken::new()).await.unwrap_err();
    assert!(format!("{error:#}").contains("cannot answer health checks at 127.0.0.1"), "{error:#}");
    assert!(reasons.try_recv().is_ok(), "the failure is reported all the same");
}

#[tokio::test]
async fn connections_that_ask_nothing_do_not_keep_probes_away() {
    let (agent, cancel) = (Agent::new(), CancellationToken::new());
    agent.health.applied();
    let address = start(agent.health(), &cancel).await;
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(get(address, "/healthz").await.status, 200);
}

#[test]
fn names_are_for_the_node_alone() {
    let agent = Agent::new();
    agent.health.applied();
    agent
        .health
        .set_failed_services(vec!["default/web: no room".to_owned(), "default/db: no room".to_owned()]);
    agent.health.set_network(vec!["eth9 is not there".to_owned()]);
    agent.health.failed(&anyhow::anyhow!("bad file"));
    let body = |client: &str, path: &str| {
        let mut request = hyper::Request::get(path).body(()).unwrap().into_parts().0;
        request
            .extensions
            .insert(Client { address: client.parse().unwrap(), server: "198.51.100.1".parse().unwrap() });
        agent.health()(&request).body
    };
    for path in ["/healthz", "/livez"] {
        for client in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "198.51.100.1"] {
            let body = body(client, path);
            assert!(
                body.contains("default/web") && body.contains("eth9") && body.contains("bad file"),
                "{body}"
            );
        }
        for client in ["192.0.2.1", "2001:db8::1"] {
            let body = body(client, path);
            let names = ["default", "web", "eth9", "bad file"].into_iter().find(|name| body.contains(name));
            assert_eq!(names, None, "{body}");
            assert!(body.contains("Services could not be programmed as they should be: 2"), "{body}");
            assert!(body.contains("cannot apply changes"), "{body}");
        }
    }
}
