//! Lists one kind of object and follows its changes, for ever.
//!
//! Not kube's `watcher`, because that one calls a streaming list complete although an event in it could not be read, does
//! not fall back where streaming lists or a field selector are unknown, and reconnects without a pause to a server that
//! ends each watch at once.

use std::{fmt::Debug, marker::PhantomData, pin::pin, sync::Arc, time::Duration};

use backon::ExponentialBackoff;
use futures::{AsyncReadExt as _, StreamExt as _};
use kube::{
    Client,
    api::WatchEvent,
    core::{ObjectList, Resource},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Timing,
    addresses::Addresses,
    backoff::{delays, jittered},
    failure::Failure,
    requests,
    subject::{Objects, Subject},
    version::{ListFrom, Position},
};
use crate::{
    model::objects::{Change, ObjectName},
    source::{
        SourceState,
        convert::{Converted, object_name},
        state::Reporter,
    },
};

pub(super) struct Watcher<K> {
    pub(super) client: Client,
    pub(super) subject: Subject<K>,
    /// For messages.
    pub(super) servers: Arc<Addresses>,
    pub(super) timing: Timing,
    pub(super) changes: mpsc::Sender<Change>,
    pub(super) reporter: Reporter,
    /// Before the next attempts.
    delays: ExponentialBackoff,
    pub(super) position: Position,
    /// Until then lists do not come as a stream of events (KEP-3157).
    pub(super) plain_until: Option<Instant>,
    /// The current watch lives since then.
    pub(super) watching_since: Option<Instant>,
    /// Before resuming, request the server's version: it may be older than ours.
    pub(super) is_doubtful: bool,
    /// Nothing has worked since then.
    pub(super) failing_since: Option<Instant>,
    /// The server has returned 403, and nothing else, since then.
    pub(super) forbidden_since: Option<Instant>,
    /// A version that went backwards was reported, and a new list is not complete yet.
    pub(super) reported_backwards: bool,
    /// The log has that the server does not have, or does not show, the optional resource.
    pub(super) logged_refusal: bool,
    /// The last request, as RBAC names it.
    pub(super) verb: &'static str,
    pub(super) kind: PhantomData<fn() -> K>,
}

impl<K> Watcher<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    pub(super) fn new(
        client: &Client,
        subject: Subject<K>,
        servers: &Arc<Addresses>,
        timing: Timing,
        changes: &mpsc::Sender<Change>,
        state: &watch::Sender<SourceState>,
    ) -> Self {
        // The state of an optional resource is not shown.
        let unseen = watch::Sender::default();
        let state = if matches!(subject.objects, Objects::Optional(_)) { &unseen } else { state };
        Self {
            client: client.clone(),
            subject,
            servers: Arc::clone(servers),
            timing,
            changes: changes.clone(),
            reporter: Reporter::new(&K::plural(&()), state),
            delays: delays(timing.first_retry, timing.longest_retry),
            position: Position::default(),
            plain_until: None,
            watching_since: None,
            is_doubtful: false,
            failing_since: None,
            forbidden_since: None,
            reported_backwards: false,
            logged_refusal: false,
            verb: "list",
            kind: PhantomData,
        }
    }

    /// Watches until the receiver is gone.
    pub(super) async fn run(mut self) {
        loop {
            self.reporter.begins();
            let end = self.round().await;
            let settled =
                self.watching_since.take().is_some_and(|since| since.elapsed() >= self.timing.settled);
            if settled {
                self.delays = delays(self.timing.first_retry, self.timing.longest_retry);
            }
            match end {
                // The server ends every watch after a while; one that ends each at once must not make us spin.
                Ok(()) if settled => {}
                Ok(()) => self.pause(None).await,
                Err(Failure::Closed) => return,
                Err(failure) => self.handle(failure).await,
            }
        }
    }

    /// One list, if needed, and one watch, until it ends.
    async fn round(&mut self) -> Result<(), Failure> {
        if self.is_doubtful && self.position.version.is_some() {
            self.check_version().await?;
        }
        if self.position.version.is_none() && !self.streams() {
            self.list_pages().await?;
        }
        let selectors = &self.subject.selectors;
        // Not all agents' watches end at once.
        let lifetime = self.timing.watch + jittered(self.timing.watch);
        let (mut listing, request) = match &self.position.version {
            Some(version) => (false, requests::watch::<K>(selectors, version, lifetime)?),
            None => (true, requests::streaming_list::<K>(selectors, &self.position.list_from, lifetime)?),
        };
        self.verb = "watch";
        let mut events = pin!(self.answer(self.client.request_events::<K>(request)).await?);
        if listing {
            self.list_begins().await?;
        } else {
            self.lives();
        }

        let mut objects = 0_usize;
        loop {
            let patience = if listing { self.timing.list_silence } else { self.timing.silence };
            let event = match timeout(patience, events.next()).await {
                Ok(Some(event)) => event?,
                Ok(None) if listing => return Err(Failure::CutOff),
                Ok(None) => return Ok(()),
                Err(_) if listing => return Err(Failure::Endless),
                Err(_) => return Err(Failure::Silent),
            };
            self.reporter.heard();
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    objects += 1;
                    self.seen(listing, object.meta().resource_version.as_deref())?;
                    self.applied(&object).await?;
                }
                WatchEvent::Deleted(object) => {
                    self.seen(listing, object.meta().resource_version.as_deref())?;
                    self.deleted(&object).await?;
                }
                WatchEvent::Bookmark(bookmark) => {
                    let version = &bookmark.metadata.resource_version;
                    if listing && bookmark.metadata.annotations.contains_key(INITIAL_EVENTS_END) {
                        listing = false;
                        self.list_ends(objects, version).await?;
                        self.lives();
                    } else {
                        self.seen(listing, Some(version))?;
                    }
                }
                WatchEvent::Error(status) => return Err(Failure::Event(status.boxed())),
            }
        }
    }

    /// A list at once, or in pages, all of one version: the server keeps it for us, and returns 410 if it cannot any longer.
    async fn list_pages(&mut self) -> Result<(), Failure> {
        self.verb = "list";
        let mut objects = 0;
        let mut next = None;
        loop {
            let request = requests::list::<K>(
                &self.subject.selectors,
                &self.position.list_from,
                self.timing.page_size,
                next.as_deref(),
            )?;
            let page = self.page(request).await?;
            self.reporter.heard();
            let version = page.metadata.resource_version.filter(|version| !version.is_empty());
            let version = version.ok_or(Failure::NoVersion)?;
            if next.is_none() {
                // Better no list than an old one.
                if self.position.list_from != ListFrom::Newest {
                    self.is_newest(&version)?;
                }
                self.list_begins().await?;
            }
            objects += page.items.len();
            for object in &page.items {
                self.applied(object).await?;
            }
            next = page.metadata.continue_.filter(|token| !token.is_empty());
            if next.is_none() {
                return self.list_ends(objects, &version).await;
            }
        }
    }

    /// Checks that the server is where we were, or ahead.
    async fn check_version(&mut self) -> Result<(), Failure> {
        self.verb = "list";
        let page = self.page(requests::newest_version::<K>()?).await?;
        self.is_newest(&page.metadata.resource_version.unwrap_or_default())?;
        self.is_doubtful = false;
        Ok(())
    }

    fn is_newest(&self, version: &str) -> Result<(), Failure> {
        match self.position.newer_than(version) {
            Some(had) => Err(Failure::Backwards { had: had.to_owned(), got: version.to_owned() }),
            None => Ok(()),
        }
    }

    /// The list may be one of tens of megabytes: its text is kept once.
    async fn page(&self, request: http::Request<Vec<u8>>) -> Result<ObjectList<K>, Failure> {
        let body = async {
            let mut body = Vec::new();
            let mut stream = pin!(self.client.request_stream(request).await?);
            stream.read_to_end(&mut body).await.map_err(kube::Error::ReadEvents)?;
            Ok(body)
        };
        let body = self.answer(body).await?;
        Ok(serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?)
    }

    /// The answer to a request: a server may take it and never answer.
    async fn answer<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        Ok(timeout(self.timing.answer, request).await.map_err(|_| Failure::NoAnswer)??)
    }

    async fn applied(&self, object: &K) -> Result<(), Failure> {
        let Converted { change, problems } = (self.subject.convert)(object);
        for problem in problems {
            warn!("{} {}: {problem}", K::kind(&()), object_name(object.meta()));
        }
        self.send(change).await
    }

    async fn deleted(&self, object: &K) -> Result<(), Failure> {
        self.send((self.subject.gone)(object_name(object.meta()))).await
    }

    async fn list_begins(&self) -> Result<(), Failure> {
        match self.subject.objects.kind() {
            Some(kind) => self.send(Change::ListStart(kind)).await,
            None => Ok(()),
        }
    }

    async fn list_ends(&mut self, objects: usize, version: &str) -> Result<(), Failure> {
        let is_final = self.position.list_from == ListFrom::Newest;
        if let Some(had) = self.position.listed(version) {
            let backwards = Failure::Backwards { had, got: version.to_owned() };
            if !is_final {
                return Err(backwards);
            }
            self.report_backwards(&backwards);
        }
        self.reported_backwards = false;
        self.is_doubtful = false;
        match self.subject.objects.kind() {
            Some(kind) => self.send(Change::ListDone(kind)).await?,
            None if objects == 0 => {
                warn!("the API server does not know this node: is --node-name right?");
                self.send((self.subject.gone)(ObjectName::default())).await?;
            }
            None => {}
        }
        debug!("listed {objects} {}", K::plural(&()));
        self.reporter.synced();
        self.healthy();
        Ok(())
    }

    async fn send(&self, change: Change) -> Result<(), Failure> {
        self.changes.send(change).await.map_err(|_| Failure::Closed)
    }

    /// Something came: remembers where to resume. Within a list only its end counts.
    fn seen(&mut self, listing: bool, version: Option<&str>) -> Result<(), Failure> {
        let Some(version) = version.filter(|version| !listing && !version.is_empty()) else { return Ok(()) };
        match self.position.advance(version) {
            Some(had) => Err(Failure::Backwards { had, got: version.to_owned() }),
            None => Ok(()),
        }
    }

    /// The watch works.
    fn lives(&mut self) {
        self.watching_since = Some(Instant::now());
        self.healthy();
    }

    fn healthy(&mut self) {
        self.failing_since = None;
        self.forbidden_since = None;
        self.reporter.served_by(&self.servers.current());
        if let Some(trouble) = self.reporter.recovered().filter(|_| !self.is_optional()) {
            let length = trouble.since.elapsed().unwrap_or_default();
            let server = self.servers.current();
            info!("the API server at {server} is well again after {:.1} s", length.as_secs_f64());
        }
    }

    fn streams(&self) -> bool {
        self.plain_until.is_none_or(|until| Instant::now() >= until)
    }

    pub(super) fn is_optional(&self) -> bool {
        matches!(self.subject.objects, Objects::Optional(_))
    }

    /// Waits for the time of the back-off, or longer if the server requires it.
    pub(super) async fn pause(&mut self, at_least: Option<Duration>) {
        let asked = at_least.unwrap_or_default();
        let delay = self.delays.next().unwrap_or_default();
        tokio::time::sleep(delay.max(asked + jittered(asked / 4))).await;
    }
}

/// Marks the bookmark that ends a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
