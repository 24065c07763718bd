//! The agent's Kubernetes Events against a stand-in API server over real HTTP.
//!
//! Set-up: no cluster: the agent's source of events in this process, and the API server's stand-in on loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use proxy_agent::{
    model::{objects::ObjectName, plan::HealthCheck},
    observe::{Events, Health, ServiceHealth, events::Event, service_health::Addresses},
    source::{
        SourceState,
        kube::{Connection, KubeSettings, RequestCounts, Timing},
    },
};
use proxy_apiserver::{ApiServer, Mode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Events of an agent on node `node-1`, and the token that ends them.
async fn events_to(server: &ApiServer) -> (Events, CancellationToken) {
    let settings = KubeSettings {
        kubeconfig: None,
        api_servers: vec![server.url()],
        node_name: "node-1".into(),
        timing: Timing::default(),
    };
    let cancel = CancellationToken::new();
    let client = Connection::new(settings, RequestCounts::default()).await.unwrap().client();
    (Events::to(client, "node-1", cancel.clone()), cancel)
}

/// The names of the objects.
fn about(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["regarding"]["name"].as_str().unwrap().to_owned()).collect()
}

fn taken(name: &str) -> Event {
    Event::service_health_failed(ObjectName::new("shop", name), "port 30500: address in use")
}

#[tokio::test]
async fn events_name_the_node_or_the_service() {
    let server = ApiServer::start().await.unwrap();
    let (events, _cancel) = events_to(&server).await;
    events.send(Event::starting());
    events.send(taken("web"));
    events.send(Event::server_failed("FailedToStartMetricServer", "address in use"));
    server.wait_for_events("three events", |events| events.len() == 3).await.unwrap();

    let all = server.events();
    let starting = &all[0];
    assert_eq!(starting["metadata"]["namespace"], "default");
    assert_eq!((&starting["type"], &starting["reason"]), (&json!("Normal"), &json!("Starting")));
    let node = json!({"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"});
    assert_eq!(starting["regarding"], node);
    assert_eq!(starting["reportingController"], "proxy-agent");
    assert_eq!(starting["reportingInstance"], "node-1");

    let failed = &all[1];
    assert_eq!(failed["metadata"]["namespace"], "shop");
    assert_eq!(failed["type"], "Warning");
    assert_eq!(failed["reason"], "FailedToStartServiceHealthcheck");
    let service = json!({"apiVersion": "v1", "kind": "Service", "namespace": "shop", "name": "web"});
    assert_eq!(failed["regarding"], service);
    assert!(failed["note"].as_str().unwrap().contains("30500"), "{failed}");

    assert_eq!(
        (&all[2]["type"], &all[2]["reason"]),
        (&json!("Warning"), &json!("FailedToStartMetricServer"))
    );
}

/// A Service that cannot be served as it should be, and programs that something else detached.
#[tokio::test]
async fn problems_of_services_and_of_the_node_are_reported() {
    let server = ApiServer::start().await.unwrap();
    let (events, _cancel) = events_to(&server).await;
    events.send(Event::service_problem(ObjectName::new("shop", "web"), "ServiceTooLarge", "5000 ports"));
    events.send(Event::hooks_restored("something else detached connect4 at cgroup; attached again"));
    server.wait_for_events("two events", |events| events.len() == 2).await.unwrap();
    let all = server.events();
    assert_eq!((&all[0]["type"], &all[0]["reason"]), (&json!("Warning"), &json!("ServiceTooLarge")));
    assert_eq!((&all[0]["regarding"]["kind"], &all[0]["note"]), (&json!("Service"), &json!("5000 ports")));
    assert_eq!((&all[1]["regarding"]["kind"], &all[1]["reason"]), (&json!("Node"), &json!("HooksRestored")));
    assert!(all[1]["note"].as_str().unwrap().contains("connect4"), "{}", all[1]);
}

/// Many Services with a problem are not many Events.
#[tokio::test]
async fn many_services_are_not_many_events() {
    let server = ApiServer::start().await.unwrap();
    let (events, _cancel) = events_to(&server).await;
    for number in 0..50 {
        events.send(taken(&number.to_string()));
    }
    events.send(Event::starting());
    server.wait_for_events("the last one", |events| about(events).contains(&"node-1".into())).await.unwrap();
    assert_eq!(server.events().len(), 25 + 1);
}

#[tokio::test]
async fn the_same_event_is_not_sent_again_and_again() {
    let server = ApiServer::start().await.unwrap();
    let (events, _cancel) = events_to(&server).await;
    for _ in 0..5 {
        events.send(taken("web"));
    }
    events.send(taken("api"));
    // They are sent in order, so the last one comes when all others have.
    server.wait_for_events("the last one", |events| about(events).contains(&"api".into())).await.unwrap();
    assert_eq!(about(&server.events()), ["web", "api"]);
}

/// A server that refuses Events costs nothing but the Events, and a refused one may be sent again.
#[tokio::test]
async fn a_refused_event_is_sent_again() {
    let server = ApiServer::start().await.unwrap();
    let (events, _cancel) = events_to(&server).await;
    server.set(|behaviour| behaviour.mode = Mode::Fail(403));
    events.send(taken("web"));
    server.wait_for_refused_events(1).await.unwrap();
    server.set(|behaviour| behaviour.mode = Mode::Serve);
    events.send(taken("web"));
    server.wait_for_events("the Event", |events| events.len() == 1).await.unwrap();
}

/// The way from a port that is taken to the Event.
#[tokio::test]
async fn a_health_check_port_that_is_taken_is_reported_once() {
    let blocker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = blocker.local_addr().unwrap();
    let server = ApiServer::start().await.unwrap();
    let (events, _cancel) = events_to(&server).await;
    let health = Arc::new(Health::new(watch::channel(SourceState::default()).1, Duration::ZERO));
    let mut servers = ServiceHealth::new(health, events.clone());
    servers.set_addresses(Addresses::These([address.ip()].into())).await;
    let check = HealthCheck { port: address.port(), local_endpoints: 1 };
    servers.update([(ObjectName::new("shop", "web"), check)]).await;
    servers.retry().await;
    events.send(taken("last"));
    server.wait_for_events("the last one", |events| about(events).contains(&"last".into())).await.unwrap();
    let all = server.events();
    assert_eq!(about(&all), ["web", "last"]);
    assert!(all[0]["note"].as_str().unwrap().contains(&address.to_string()), "{}", all[0]);
}

/// Without an API server, or with one that never answers, the agent does not wait.
#[tokio::test]
async fn the_agent_does_not_wait_for_events() {
    Events::nowhere().send(Event::starting());
    let server = ApiServer::start().await.unwrap();
    server.set(|behaviour| behaviour.mode = Mode::Hang);
    let (events, cancel) = events_to(&server).await;
    for number in 0..1000 {
        events.send(taken(&number.to_string()));
    }
    cancel.cancel();
    assert_eq!(server.events(), Vec::<Value>::new());
}
