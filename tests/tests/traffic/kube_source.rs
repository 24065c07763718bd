//! The agent's source for API servers against a stand-in over real HTTP: the changes lead to the server's state, whatever fails.
//!
//! Set-up: no cluster: the agent's source in this process against one stand-in on loopback. `lists` and `outages` are
//! two topics of it.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lists;
mod outages;

use std::{future::Future, time::Duration};

use proxy_agent::{
    model::{
        objects::{Change, Kind},
        planner,
        store::Store,
    },
    source::{
        SourceState,
        kube::{Connection, KubeSettings, RequestCounts, Timing},
    },
};
use proxy_apiserver::{ApiServer, Mode, Request, Resource};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub(super) const NODE: &str = "node-1";

/// Patience of the tests: longer than any reconnection, even after silence.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// In more of a hurry than in production.
pub(super) const TIMING: Timing = Timing {
    watch: Duration::from_secs(2),
    silence: Duration::from_secs(5),
    answer: Duration::from_secs(2),
    next_address: Duration::from_millis(300),
    list_silence: Duration::from_millis(500),
    plain_lists: Duration::from_secs(1800),
    settled: Duration::from_millis(100),
    long_outage: Duration::from_millis(500),
    forbidden_grace: Duration::from_millis(300),
    first_retry: Duration::from_millis(20),
    longest_retry: Duration::from_millis(200),
    reload: Duration::from_millis(200),
    page_size: 2,
};

/// A running source and the store it feeds.
pub(super) struct Source {
    changes: mpsc::Receiver<Change>,
    pub(super) state: watch::Receiver<SourceState>,
    pub(super) store: Store,
    seen: Vec<Change>,
    cancel: CancellationToken,
    pub(super) requests: RequestCounts,
}

impl Source {
    pub(super) fn start(server: &ApiServer) -> Self {
        Self::with(KubeSettings {
            kubeconfig: None,
            api_servers: vec![server.url()],
            node_name: NODE.into(),
            timing: TIMING,
        })
    }

    pub(super) fn with(settings: KubeSettings) -> Self {
        let requests = RequestCounts::default();
        let counts = requests.clone();
        let (sender, changes) = mpsc::channel(4);
        let (state_sender, state) = watch::channel(SourceState::default());
        let cancel = CancellationToken::new();
        let end = cancel.clone();
        tokio::spawn(async move {
            Connection::new(settings, counts)
                .await
                .expect("settings that work")
                .watch(sender, state_sender, end)
                .await;
        });
        Self { changes, state, store: Store::new(), seen: Vec::new(), cancel, requests }
    }

    /// Takes in changes until the condition holds.
    pub(super) async fn until(&mut self, what: &str, condition: impl Fn(&Store) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(&self.store) {
            let Ok(change) = timeout_at(deadline, self.changes.recv()).await else {
                panic!(
                    "not in time: {what}; the store is {:#?}, the state {:#?}",
                    self.store,
                    self.state.borrow()
                );
            };
            let change = change.expect("the source continues");
            self.seen.push(change.clone());
            self.store.apply(change);
        }
    }

    /// Waits until exactly these Services are there, each with its endpoints.
    pub(super) async fn until_served(&mut self, expected: &[(&str, &[&str])]) {
        let what = format!("{expected:?}");
        self.until(&what, |store| store.is_complete() && is_served(store, expected)).await;
    }

    /// Runs something while changes are taken in.
    pub(super) async fn during<T>(&mut self, what: &str, action: impl Future<Output = T>) -> T {
        let mut action = Box::pin(action);
        let deadline = Instant::now() + DEADLINE;
        loop {
            tokio::select! {
                result = &mut action => return result,
                change = timeout_at(deadline, self.changes.recv()) => {
                    let change = change.expect(what).expect("the source continues");
                    self.seen.push(change.clone());
                    self.store.apply(change);
                }
            }
        }
    }

    pub(super) async fn until_trouble(&mut self, part: &str) {
        let mut state = self.state.clone();
        let condition =
            |state: &SourceState| state.trouble().is_some_and(|trouble| trouble.message.contains(part));
        let waiting = async {
            drop(timeout_at(Instant::now() + DEADLINE, state.wait_for(condition)).await.expect(part))
        };
        self.during(part, waiting).await;
    }

    pub(super) async fn until_well(&mut self) {
        let mut state = self.state.clone();
        let condition = |state: &SourceState| state.is_synced() && state.trouble().is_none();
        let waiting = async {
            drop(timeout_at(Instant::now() + DEADLINE, state.wait_for(condition)).await.expect("well"))
        };
        self.during("well", waiting).await;
    }

    pub(super) fn lists_done(&self, kind: Kind) -> usize {
        self.seen.iter().filter(|change| **change == Change::ListDone(kind)).count()
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Each Service's name and the endpoints its first port has.
fn served(store: &Store) -> Vec<(String, Vec<String>)> {
    let mut served: Vec<_> = store
        .all_services()
        .map(|service| {
            let plans = planner::plan_stored(store, &service.name, NODE);
            (service.name.name.to_string(), plans.ports[0].internal.iter().map(ToString::to_string).collect())
        })
        .collect();
    served.sort();
    served
}

fn is_served(store: &Store, expected: &[(&str, &[&str])]) -> bool {
    let served = served(store);
    served.len() == expected.len()
        && served
            .iter()
            .zip(expected)
            .all(|(served, expected)| served.0 == expected.0 && served.1 == expected.1)
}

pub(super) fn service(name: &str, cluster_ip: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": labels, "managedFields": [{"manager": "x"}]},
        "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": [{"port": 80, "targetPort": "http"}]},
        "status": {"loadBalancer": {}},
    })
}

pub(super) fn web(name: &str) -> Value {
    service(name, "10.96.0.1", json!({}))
}

/// A slice of a Service with endpoints 10.244.0.x:8080.
pub(super) fn slice(name: &str, service: &str, endpoints: &[u8]) -> Value {
    let endpoints: Vec<_> =
        endpoints.iter().map(|last| json!({"addresses": [format!("10.244.0.{last}")]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
    })
}

pub(super) fn node(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

/// A server with Services `a` and `b` of one endpoint each, and this node.
pub(super) async fn server() -> ApiServer {
    let server = ApiServer::start().await.unwrap();
    for object in
        [web("a"), web("b"), slice("a-1", "a", &[1]), slice("b-1", "b", &[2]), node(NODE, "192.0.2.1")]
    {
        server.apply(object).unwrap();
    }
    server
}

pub(super) const A_AND_B: &[(&str, &[&str])] = &[("a", &["10.244.0.1:8080"]), ("b", &["10.244.0.2:8080"])];

pub(super) fn lists(requests: &[Request], resource: Resource) -> usize {
    requests.iter().filter(|request| request.resource == resource && request.is_list()).count()
}

/// Watches that go on from a version.
pub(super) fn resumptions(requests: &[Request], resource: Resource) -> usize {
    let watches = requests.iter().filter(|request| request.resource == resource && request.is_watch());
    watches.filter(|request| !request.is_list()).count()
}

fn service_cidr(name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": [cidr]},
    })
}

fn service_cidrs(store: &Store) -> Vec<String> {
    store.service_cidrs().iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn service_cidrs_are_followed() {
    for streaming in [true, false] {
        let server = server().await;
        server.apply(service_cidr("kubernetes", "10.96.0.0/16")).unwrap();
        server.set(|behaviour| behaviour.streaming_lists = streaming);
        let mut source = Source::start(&server);
        source.until("the first", |store| service_cidrs(store) == ["10.96.0.0/16"]).await;
        source.until_served(A_AND_B).await;
        source.until_well().await;
        server.apply(service_cidr("more", "10.97.0.0/16")).unwrap();
        source.until("another", |store| service_cidrs(store) == ["10.96.0.0/16", "10.97.0.0/16"]).await;
        server.delete(Resource::ServiceCidrs, "", "kubernetes");
        source.until("one less", |store| service_cidrs(store) == ["10.97.0.0/16"]).await;
        // An object deleted while no watch runs is gone with the next list.
        server.set(|behaviour| behaviour.mode = Mode::Refuse);
        source.until_trouble("cannot reach the API server").await;
        server.delete(Resource::ServiceCidrs, "", "more");
        server.compact();
        server.set(|behaviour| behaviour.mode = Mode::Serve);
        source.until("none", |store| service_cidrs(store).is_empty()).await;
    }
}

#[tokio::test]
async fn a_server_without_service_cidrs_is_not_a_problem() {
    let server = server().await;
    server.set(|behaviour| behaviour.service_cidrs = false);
    let mut source = Source::start(&server);
    let asked = |requests: &[Request]| requests.iter().any(|r| r.resource == Resource::ServiceCidrs);
    source.during("asked", server.wait_for_requests("a request for ServiceCIDRs", asked)).await.unwrap();
    source.until_served(A_AND_B).await;
    source.until_well().await;
    server.apply(slice("a-1", "a", &[1, 3])).unwrap();
    source.until_served(&[("a", &["10.244.0.1:8080", "10.244.0.3:8080"]), A_AND_B[1]]).await;

    let state = source.state.borrow();
    assert!(state.watches.keys().eq(["endpointslices", "nodes", "services"]), "{state:#?}");
    let requests = server.requests();
    let asked = requests.iter().filter(|request| request.resource == Resource::ServiceCidrs).count();
    assert_eq!(asked, 1, "it is not asked again and again");
    assert_eq!(source.lists_done(Kind::ServiceCidr), 0);
}

#[tokio::test]
async fn a_node_that_goes_or_never_was_is_gone() {
    for streaming in [true, false] {
        let server = server().await;
        server.set(|behaviour| behaviour.streaming_lists = streaming);
        let mut source = Source::start(&server);
        source.until("the node", |store| store.node().is_some() && !store.node_is_gone()).await;
        source.until_served(A_AND_B).await;
        source.until_well().await;
        server.delete(Resource::Nodes, "", NODE);
        source.until("gone", Store::node_is_gone).await;
        server.apply(node(NODE, "192.0.2.7")).unwrap();
        source.until("back", |store| !store.node_is_gone()).await;
        // Deleted while no watch runs.
        server.set(|behaviour| behaviour.mode = Mode::Refuse);
        source.until_trouble("cannot reach the API server").await;
        server.delete(Resource::Nodes, "", NODE);
        server.compact();
        server.set(|behaviour| behaviour.mode = Mode::Serve);
        source.until("gone again", Store::node_is_gone).await;
    }
    let server = ApiServer::start().await.unwrap();
    Source::start(&server).until("no such node", Store::node_is_gone).await;
}

#[tokio::test]
async fn a_label_takes_an_object_away_and_gives_it_back() {
    let server = server().await;
    let mut source = Source::start(&server);
    source.until_served(A_AND_B).await;

    let label = "service.kubernetes.io/service-proxy-name";
    server.apply(service("a", "10.96.0.1", json!({label: "other"}))).unwrap();
    source.until_served(&A_AND_B[1..]).await;
    server.apply(web("a")).unwrap();
    source.until_served(A_AND_B).await;

    let mut headless = slice("b-1", "b", &[2]);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
    server.apply(headless).unwrap();
    source.until_served(&[A_AND_B[0], ("b", &[])]).await;
    server.apply(slice("b-1", "b", &[2])).unwrap();
    source.until_served(A_AND_B).await;
}
