//! Which paths there are, and what they answer.

use std::sync::Arc;

use hyper::StatusCode;

use super::{
    Health, Metrics,
    health::Report,
    http::{Answer, Routes, text},
};

/// What kube-proxy calls its mode; scripts ask for it.
const PROXY_MODE: &str = "ebpf";

/// `/healthz` and `/livez`, for `--healthz-bind-address`.
pub fn health(health: Arc<Health>) -> Routes {
    Arc::new(move |path| match path {
        "/healthz" => Some(report(&health.ready())),
        "/livez" => Some(report(&health.live())),
        _ => None,
    })
}

/// `/metrics`, `/healthz` and `/proxyMode`, for `--metrics-bind-address`.
pub fn metrics(metrics: Arc<Metrics>, health: Arc<Health>) -> Routes {
    Arc::new(move |path| match path {
        "/metrics" => Some(match metrics.encode() {
            Ok(body) => Answer {
                status: StatusCode::OK,
                content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                body,
            },
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        }),
        "/healthz" => Some(report(&health.ready())),
        "/proxyMode" => Some(text(StatusCode::OK, PROXY_MODE)),
        _ => None,
    })
}

fn report(report: &Report) -> Answer {
    let status = if report.is_healthy() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(report) {
        Ok(body) => Answer { status, content_type: "application/json", body },
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, path::Path, time::Duration};

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        sync::watch,
    };
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{datapath::pins::Pins, observe::http, source::SourceState};

    struct Agent {
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        source: watch::Sender<SourceState>,
    }

    impl Agent {
        fn new() -> Self {
            let (source, state) = watch::channel(SourceState::default());
            let health = Arc::new(Health::new(state.clone()));
            let metrics = Arc::new(Metrics::new(Pins::new(Path::new("/nowhere")), state));
            Self { health, metrics, source }
        }
    }

    async fn start(routes: Routes, cancel: &CancellationToken) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(http::serve_on(listener, routes, cancel.clone()));
        address
    }

    /// Status, lower-case headers and body.
    async fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        let read = stream.read_to_string(&mut response);
        tokio::time::timeout(Duration::from_secs(10), read).await.unwrap().unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_owned())
    }

    #[tokio::test]
    async fn health_follows_the_work() {
        let (agent, cancel) = (Agent::new(), CancellationToken::new());
        let address = start(health(agent.health.clone()), &cancel).await;
        for (path, before, after) in [("/healthz", 503, 200), ("/livez", 200, 200)] {
            assert_eq!(request(address, "GET", path).await.0, before, "{path} before the first sync");
            agent.health.applied();
            let (status, head, body) = request(address, "GET", path).await;
            assert_eq!(status, after, "{path}");
            assert!(head.contains("content-type: application/json"), "{head}");
            assert!(head.contains("x-content-type-options: nosniff"), "{head}");
            let json: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(json["healthy"], true);
        }
        cancel.cancel();
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        let (agent, cancel) = (Agent::new(), CancellationToken::new());
        let address = start(metrics(agent.metrics.clone(), agent.health.clone()), &cancel).await;
        for (method, path, expected) in [
            ("GET", "/", 404),
            ("GET", "/livez", 404),
            ("POST", "/nothing", 404),
            ("POST", "/metrics", 405),
            ("DELETE", "/proxyMode", 405),
            ("HEAD", "/metrics", 200),
            ("GET", "/metrics?format=text", 200),
        ] {
            let (status, head, body) = request(address, method, path).await;
            assert_eq!(status, expected, "{method} {path}");
            assert_eq!(head.contains("allow: get, head"), expected == 405);
            assert!(method != "HEAD" || body.is_empty());
        }
        let (_, _, mode) = request(address, "GET", "/proxyMode").await;
        assert_eq!(mode, "ebpf");
        cancel.cancel();
    }

    #[tokio::test]
    async fn metrics_show_what_happened() {
        let (agent, cancel) = (Agent::new(), CancellationToken::new());
        let address = start(metrics(agent.metrics.clone(), agent.health.clone()), &cancel).await;
        agent.metrics.applied(Duration::from_millis(3));
        agent.metrics.failed();
        agent.source.send_modify(|state| {
            state.watches.entry("services".into()).or_default().synced = true;
        });
        let (_, head, body) = request(address, "GET", "/metrics").await;
        assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "proxy_agent_apply_errors_total 1",
            "proxy_agent_source_synced 1",
        ] {
            assert!(body.lines().any(|other| other == line), "{line} is missing in:\n{body}");
        }
        cancel.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn a_taken_address_is_tried_again() {
        let cancel = CancellationToken::new();
        let blocker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = blocker.local_addr().unwrap();
        let agent = Agent::new();
        let server = tokio::spawn({
            let (routes, cancel) = (health(agent.health.clone()), cancel.clone());
            async move { http::serve("health", address, routes, cancel).await }
        });
        tokio::task::yield_now().await;
        assert!(!server.is_finished(), "the agent goes on without");
        drop(blocker);
        // Time is paused: it runs ahead to the next attempt.
        tokio::time::sleep(Duration::from_secs(6)).await;
        TcpStream::connect(address).await.unwrap();
        cancel.cancel();
        server.await.unwrap();
    }
}
