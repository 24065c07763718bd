//! A stand-in for the API server: Services, EndpointSlices, Nodes and ServiceCIDRs over real HTTP, and every way it can fail.
//!
//! It lists (in pages, or streaming as in KEP-3157) and watches (bookmarks, selectors, label flips, resource versions,
//! 410 Gone) as the real one does, as far as a service proxy can see. It keeps the Events that it is sent. It can
//! speak TLS and ask for a bearer token.

mod behaviour;
mod events;
mod request;
mod selector;
mod serve;
mod state;
mod watch;

use std::{
    fmt::Debug,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::watch as signal,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use self::state::State;
pub use self::{
    behaviour::{Behaviour, Mode},
    request::Request,
    state::{EventType, Resource},
};

/// The server. Ends with its last handle.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

/// State that connections share.
#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// Counts changes of anything that a watch may have to react to.
    changed: signal::Sender<u64>,
    /// Counts the times all connections were cut.
    cut: signal::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    behaviour: Behaviour,
    requests: Vec<Request>,
    /// Events that were created, in order.
    events: Vec<Value>,
    /// Counts those that were refused.
    events_refused: usize,
    /// Each asks watches for one thing.
    bookmarks_asked: u64,
    expiries_asked: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn cut_connections(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

impl ApiServer {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// If the port is not available.
    pub async fn start() -> anyhow::Result<Self> {
        Self::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Starts a server on an address.
    ///
    /// # Errors
    ///
    /// If the address cannot be had.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        Self::bind_with(address, None).await
    }

    /// Starts a server on a free port of 127.0.0.1 that speaks TLS.
    ///
    /// # Errors
    ///
    /// If the port is not available.
    pub async fn start_tls(tls: Arc<ServerConfig>) -> anyhow::Result<Self> {
        Self::bind_with(SocketAddr::from(([127, 0, 0, 1], 0)), Some(tls.into())).await
    }

    async fn bind_with(address: SocketAddr, tls: Option<TlsAcceptor>) -> anyhow::Result<Self> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            inner: Mutex::default(),
            changed: signal::Sender::new(0),
            cut: signal::Sender::new(0),
        });
        let acceptor = tokio::spawn(serve::accept(address, listener, tls, Arc::clone(&shared)));
        Ok(Self { address, scheme, shared, acceptor })
    }

    /// Its address as `--api-server` takes it.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Creates or replaces an object. Gives its resource version.
    ///
    /// # Errors
    ///
    /// If it is not a Service, EndpointSlice, Node or ServiceCIDR with a name.
    pub fn apply(&self, object: Value) -> anyhow::Result<u64> {
        let version = self.shared.lock().state.apply(object)?;
        self.shared.notify();
        Ok(version)
    }

    /// Deletes an object; returns whether it existed. The namespace of Nodes and ServiceCIDRs is empty.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        let found = self.shared.lock().state.delete(resource, namespace, name);
        self.shared.notify();
        found
    }

    /// Sends an event to watches without touching the objects, as a server with stale caches might.
    ///
    /// # Errors
    ///
    /// If the object is not one of ours.
    pub fn send_event(&self, kind: EventType, object: Value) -> anyhow::Result<()> {
        self.shared.lock().state.inject(kind, object)?;
        self.shared.notify();
        Ok(())
    }

    /// Changes the server's behaviour. Going to or from [`Mode::Refuse`] cuts all connections.
    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        let (before, now) = {
            let behaviour = &mut self.shared.lock().behaviour;
            let before = behaviour.mode;
            change(behaviour);
            (before, behaviour.mode)
        };
        self.shared.notify();
        if before != now && (before == Mode::Refuse || now == Mode::Refuse) {
            self.shared.cut_connections();
        }
    }

    /// Cuts all connections, in the middle of whatever they do.
    pub fn drop_connections(&self) {
        self.shared.cut_connections();
    }

    /// Forgets the history: watches from older versions get 410 Gone from now on. Running ones go on.
    pub fn compact(&self) {
        self.shared.lock().state.compact();
    }

    /// Goes back to the state at a version, as from a backup of etcd, and cuts all connections.
    pub fn restore(&self, version: u64) {
        self.shared.lock().state.restore(version);
        self.shared.notify();
        self.shared.cut_connections();
    }

    /// Ends all running watches with 410 Gone.
    pub fn expire_watches(&self) {
        self.shared.lock().expiries_asked += 1;
        self.shared.notify();
    }

    /// Sends a bookmark to all running watches.
    pub fn send_bookmarks(&self) {
        self.shared.lock().bookmarks_asked += 1;
        self.shared.notify();
    }

    /// The requests that came, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// The `events.k8s.io/v1` Events that were created, in order.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().events.clone()
    }

    /// Waits until the requests that came satisfy a condition.
    ///
    /// # Errors
    ///
    /// If they do not within ten seconds; shows them then.
    pub async fn wait_for_requests(
        &self,
        what: &str,
        condition: impl Fn(&[Request]) -> bool,
    ) -> anyhow::Result<()> {
        self.wait_for(what, || self.requests(), |requests| condition(requests)).await
    }

    /// Waits until the Events that were created satisfy a condition.
    ///
    /// # Errors
    ///
    /// If they do not within ten seconds; shows them then.
    pub async fn wait_for_events(
        &self,
        what: &str,
        condition: impl Fn(&[Value]) -> bool,
    ) -> anyhow::Result<()> {
        self.wait_for(what, || self.events(), |events| condition(events)).await
    }

    /// Waits until this many Events were refused.
    ///
    /// # Errors
    ///
    /// If they were not within ten seconds.
    pub async fn wait_for_refused_events(&self, count: usize) -> anyhow::Result<()> {
        self.wait_for("refused Events", || self.shared.lock().events_refused, |refused| *refused >= count)
            .await
    }

    async fn wait_for<T: Debug>(
        &self,
        what: &str,
        get: impl Fn() -> T,
        condition: impl Fn(&T) -> bool,
    ) -> anyhow::Result<()> {
        let mut changed = self.shared.changed.subscribe();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let seen = get();
            if condition(&seen) {
                return Ok(());
            }
            let late = || format!("not in time: {what}; there was {seen:#?}");
            timeout_at(deadline, changed.changed()).await.with_context(late)??;
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.acceptor.abort();
        self.shared.cut_connections();
    }
}
