use std::time::Duration;

use tokio::sync::watch;

use super::*;
use crate::{
    observe::{
        health::Audience,
        test_client::{get, request},
    },
    source::SourceState,
};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn wanted(services: &[(&str, u16, usize)]) -> BTreeMap<ObjectName, HealthCheck> {
    let check = |(service, port, local_endpoints): &(&str, u16, usize)| {
        (name(service), HealthCheck { port: *port, local_endpoints: *local_endpoints })
    };
    services.iter().map(check).collect()
}

/// Servers on 127.0.0.1 of a proxy that is well.
async fn servers() -> ServiceHealth {
    let health = Arc::new(Health::new(watch::channel(SourceState::default()).1, Duration::ZERO));
    health.applied();
    let mut servers = ServiceHealth::new(health, Events::nowhere());
    servers.set_addresses(Addresses::These([LOOPBACK].into())).await;
    servers
}

/// Free ports. They are held together, so that they differ.
fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| std::net::TcpListener::bind((LOOPBACK, 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn at(port: u16) -> SocketAddr {
    (LOOPBACK, port).into()
}

fn is_open(port: u16) -> bool {
    std::net::TcpStream::connect(at(port)).is_ok()
}

async fn asked(port: u16) -> (u16, String) {
    let got = get(at(port), "/").await;
    (got.status, got.body)
}

#[tokio::test]
async fn any_question_gets_kube_proxys_answer_to_the_byte() {
    let [port] = free_ports();
    let mut servers = servers().await;
    servers.update(wanted(&[("web", port, 3)])).await;
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
                \t\"localEndpoints\": 3,\n\t\"serviceProxyHealthy\": true\n}";
    for (method, path) in [("GET", "/"), ("GET", "/healthz"), ("POST", "/any?thing"), ("OPTIONS", "/x")] {
        let got = request(at(port), method, path, "").await;
        assert_eq!((got.status, got.body.as_str()), (200, body), "{method} {path}");
        for header in [
            "content-type: application/json\r\n",
            "x-content-type-options: nosniff\r\n",
            "x-load-balancing-endpoint-weight: 3\r\n",
        ] {
            assert!(got.head.contains(header), "{header} is missing in {}", got.head);
        }
    }
}

#[tokio::test]
async fn without_endpoints_or_a_proxy_that_works_load_balancers_stay_away() {
    let [port] = free_ports();
    let mut servers = servers().await;
    servers.update(wanted(&[("web", port, 0)])).await;
    let (status, body) = asked(port).await;
    assert_eq!(status, 503);
    assert!(
        body.contains("\"localEndpoints\": 0") && body.contains("\"serviceProxyHealthy\": true"),
        "{body}"
    );
    servers.update(wanted(&[("web", port, 2)])).await;
    assert_eq!(asked(port).await.0, 200);
    servers.health.set_node_eligible(false);
    assert_eq!(asked(port).await.0, 200, "the node's taints do not matter here");

    let starting = Arc::new(Health::new(watch::channel(SourceState::default()).1, Duration::ZERO));
    let [other] = free_ports();
    let mut servers = ServiceHealth::new(starting, Events::nowhere());
    servers.set_addresses(Addresses::These([LOOPBACK].into())).await;
    servers.update(wanted(&[("web", other, 2)])).await;
    let (status, body) = asked(other).await;
    assert_eq!(status, 503);
    assert!(
        body.contains("\"localEndpoints\": 2") && body.contains("\"serviceProxyHealthy\": false"),
        "{body}"
    );
}

#[tokio::test]
async fn ports_follow_their_services() {
    let [first, second] = free_ports();
    let mut servers = servers().await;
    servers.update(wanted(&[("web", first, 1)])).await;
    servers.update(wanted(&[("web", second, 1)])).await;
    assert!(!is_open(first), "the old port is closed");
    assert_eq!(asked(second).await.0, 200);

    servers.update(wanted(&[("api", second, 0)])).await;
    let (status, body) = asked(second).await;
    assert_eq!(status, 503, "the port passed on at once");
    assert!(body.contains("\"name\": \"api\""), "{body}");
    assert!(servers.problems().is_empty(), "{:?}", servers.problems());

    servers.update([]).await;
    assert!(!is_open(second));
}

#[tokio::test]
async fn a_port_that_is_taken_is_reported_and_opened_later() {
    let blocker = std::net::TcpListener::bind((LOOPBACK, 0)).unwrap();
    let port = blocker.local_addr().unwrap().port();
    let [other] = free_ports();
    let mut servers = servers().await;
    servers.update(wanted(&[("api", other, 1), ("web", port, 1)])).await;
    assert_eq!(asked(other).await.0, 200, "the others are not concerned");
    assert_eq!(servers.problems().keys().collect::<Vec<_>>(), [&name("web")]);
    let report = serde_json::to_string(&servers.health.ready(Audience::Node)).unwrap();
    assert!(report.contains("health check of default/web: cannot listen on 127.0.0.1"), "{report}");
    servers.retry().await;
    assert_eq!(servers.problems().len(), 1);

    drop(blocker);
    servers.retry().await;
    assert_eq!(asked(port).await.0, 200);
    assert!(servers.problems().is_empty());
    assert!(!serde_json::to_string(&servers.health.ready(Audience::Node)).unwrap().contains("problems"));
}

#[tokio::test]
async fn of_two_services_the_one_that_has_the_port_keeps_it() {
    let [port] = free_ports();
    let mut servers = servers().await;
    servers.update(wanted(&[("web", port, 1)])).await;
    servers.update(wanted(&[("api", port, 5), ("web", port, 1)])).await;
    assert!(asked(port).await.1.contains("\"name\": \"web\""));
    assert_eq!(servers.problems()[&name("api")], format!("port {port} is that of service default/web"));

    servers.update(wanted(&[("api", port, 5)])).await;
    assert!(asked(port).await.1.contains("\"name\": \"api\""));
    assert!(servers.problems().is_empty());
}

#[tokio::test]
async fn without_a_restriction_both_families_are_answered() {
    let [port] = free_ports();
    let mut servers = servers().await;
    servers.update(wanted(&[("web", port, 1)])).await;
    servers.set_addresses(Addresses::Any).await;
    assert!(servers.problems().is_empty(), "{:?}", servers.problems());
    assert_eq!(asked(port).await.0, 200);
    // A machine without IPv6 has nothing to answer there.
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        assert_eq!(get(v6, "/").await.status, 200);
    }

    let elsewhere: IpAddr = [127, 0, 0, 2].into();
    servers.set_addresses(Addresses::These([elsewhere].into())).await;
    assert!(!is_open(port), "only where it is wanted");
    assert_eq!(get((elsewhere, port).into(), "/").await.status, 200);
}
