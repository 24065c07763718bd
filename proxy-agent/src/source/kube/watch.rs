//! Lists one kind of object and follows its changes, for ever.
//!
//! Not kube's `watcher`, because that one calls a streaming list complete although an event in it could not be read, does
//! not fall back where streaming lists or a field selector are unknown, and reconnects without a pause to a server that
//! ends each watch at once.

use std::{fmt::Debug, pin::pin, time::Duration};

use futures::StreamExt as _;
use kube::{
    Api,
    api::{ListParams, WatchEvent, WatchParams},
    core::Resource,
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Timing,
    backoff::Backoff,
    client::SLACK,
    failure::Failure,
    subject::{Objects, Subject},
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
    api: Api<K>,
    subject: Subject<K>,
    /// Its URL, for messages.
    server: String,
    timing: Timing,
    changes: mpsc::Sender<Change>,
    reporter: Reporter,
    backoff: Backoff,
    /// Where to go on watching; none: a list is needed.
    version: Option<String>,
    /// A list must not be older than what was already seen; "0" is anything.
    list_from: String,
    /// Lists come as a stream of events (KEP-3157), else in pages.
    streaming: bool,
    /// It was said that the server does not have, or does not show, what is optional.
    told_refusal: bool,
}

impl<K> Watcher<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    pub(super) fn new(
        api: Api<K>,
        subject: Subject<K>,
        server: &str,
        timing: Timing,
        changes: &mpsc::Sender<Change>,
        state: &watch::Sender<SourceState>,
    ) -> Self {
        // Nobody follows how what is optional is doing.
        let unseen = watch::Sender::default();
        let state = if matches!(subject.objects, Objects::Optional(_)) { &unseen } else { state };
        Self {
            api,
            subject,
            server: server.to_owned(),
            timing,
            changes: changes.clone(),
            reporter: Reporter::new(&K::plural(&()), state),
            backoff: Backoff::new(timing.first_retry, timing.longest_retry),
            version: None,
            list_from: ANY_VERSION.to_owned(),
            streaming: true,
            told_refusal: false,
        }
    }

    /// Watches until nobody listens.
    pub(super) async fn run(mut self) {
        loop {
            self.reporter.begins();
            let began = Instant::now();
            match self.round().await {
                // The server ends every watch after a while; one that ends each at once must not make us spin.
                Ok(()) if began.elapsed() > SHORT => {}
                Ok(()) => self.pause().await,
                Err(Failure::Closed) => return,
                Err(failure) => self.handle(failure).await,
            }
        }
    }

    /// One list, if needed, and one watch, until it ends.
    async fn round(&mut self) -> Result<(), Failure> {
        if self.version.is_none() && !self.streaming {
            self.list_pages().await?;
        }
        let mut listing = self.version.is_none();
        let params = WatchParams {
            label_selector: self.subject.selectors.labels.clone(),
            field_selector: self.subject.selectors.fields.clone(),
            timeout: Some(self.timing.watch.as_secs().try_into().unwrap_or(MAX_WATCH_SECONDS)),
            bookmarks: true,
            send_initial_events: listing,
        };
        let from = self.version.as_ref().unwrap_or(&self.list_from).clone();
        let mut events = pin!(self.answer(self.api.watch(&params, &from)).await?);
        if listing {
            self.list_begins().await?;
        } else {
            self.healthy();
        }

        let mut objects = 0_usize;
        loop {
            let patience = if listing { self.timing.list_silence } else { self.timing.watch + SLACK };
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
                    self.applied(&object).await?;
                    self.seen(listing, object.meta().resource_version.as_deref());
                }
                WatchEvent::Deleted(object) => {
                    self.deleted(&object).await?;
                    self.seen(listing, object.meta().resource_version.as_deref());
                }
                WatchEvent::Bookmark(bookmark) => {
                    if listing && bookmark.metadata.annotations.contains_key(INITIAL_EVENTS_END) {
                        listing = false;
                        self.list_ends(objects).await?;
                    }
                    self.seen(listing, Some(&bookmark.metadata.resource_version));
                }
                WatchEvent::Error(status) => return Err(Failure::Event(status.boxed())),
            }
        }
    }

    /// A list in pages, all of one version: the server keeps it for us, and says 410 if it cannot any longer.
    async fn list_pages(&mut self) -> Result<(), Failure> {
        let mut params = ListParams {
            label_selector: self.subject.selectors.labels.clone(),
            field_selector: self.subject.selectors.fields.clone(),
            limit: Some(self.timing.page_size),
            ..ListParams::default()
        };
        self.list_begins().await?;
        let mut objects = 0;
        loop {
            let page = self.answer(self.api.list(&params)).await?;
            self.reporter.heard();
            objects += page.items.len();
            for object in &page.items {
                self.applied(object).await?;
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                self.version = Some(version.ok_or(Failure::NoVersion)?);
                return self.list_ends(objects).await;
            }
        }
    }

    /// The answer to a request: a server may take it and never answer.
    async fn answer<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
        let patience = self.timing.watch + SLACK;
        Ok(timeout(patience, request).await.map_err(|_| Failure::Silent)??)
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

    async fn list_ends(&mut self, objects: usize) -> Result<(), Failure> {
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

    /// Something came: remembers where to go on. Within a list only its end counts.
    fn seen(&mut self, listing: bool, version: Option<&str>) {
        self.backoff.reset();
        if let Some(version) = version.filter(|version| !listing && !version.is_empty()) {
            self.version = Some(version.to_owned());
        }
    }

    fn healthy(&self) {
        if let Some(trouble) = self.reporter.recovered().filter(|_| !self.is_optional()) {
            let length = trouble.since.elapsed().unwrap_or_default();
            info!("the API server at {} is well again after {:.1} s", self.server, length.as_secs_f64());
        }
    }

    /// Falls back, lists anew or just waits, as the failure demands.
    async fn handle(&mut self, failure: Failure) {
        let plural = K::plural(&());
        if self.fall_back(&failure) {
            return;
        }
        if failure.lost_events()
            && let Some(version) = self.version.take()
        {
            debug!("{plural}: {failure}: listing anew");
            self.list_from = version;
            // All agents of a cluster get here together when the server forgets its history.
            return self.pause().await;
        }
        // If even a list fails, its condition may be what is wrong.
        if self.version.is_none() {
            ANY_VERSION.clone_into(&mut self.list_from);
        }
        let (message, detail) = failure.describe(&self.server, &plural);
        if self.is_optional() {
            // An outage is told by the other watches.
            let is_refusal = matches!(failure.code(), Some(403 | 404));
            if is_refusal && !self.told_refusal {
                self.told_refusal = true;
                info!("the API server does not offer {plural}: going without ({message}: {detail})");
            }
            debug!("{plural}: {message}: {detail}; retrying");
            return if is_refusal { tokio::time::sleep(REFUSED).await } else { self.pause().await };
        }
        if self.reporter.failed(&message, &detail) {
            warn!("{message}: {detail}; retrying");
        } else {
            debug!("{plural}: {message}: {detail}; retrying");
        }
        self.pause().await;
    }

    /// Asks for less if the server does not understand the request. Says whether anything changed.
    fn fall_back(&mut self, failure: &Failure) -> bool {
        // This node cannot do without its name.
        let optional_fields =
            self.subject.objects != Objects::ThisNode && self.subject.selectors.fields.is_some();
        let about_fields = matches!(failure, Failure::Request(kube::Error::Api(status))
            if status.message.contains("field label") || status.message.contains("field selector"));
        let refused_fields = failure.code() == Some(400) && optional_fields;
        let refused_stream = self.version.is_none()
            && self.streaming
            && (matches!(failure, Failure::Endless) || matches!(failure.code(), Some(400 | 422)));

        let plural = K::plural(&());
        if refused_fields && (about_fields || !refused_stream) {
            info!("the API server does not know the field selector for {plural}: filtering here");
            self.subject.selectors.fields = None;
        } else if refused_stream {
            info!("the API server does not stream lists of {plural}: listing in pages ({failure})");
            self.streaming = false;
        } else {
            return false;
        }
        true
    }

    fn is_optional(&self) -> bool {
        matches!(self.subject.objects, Objects::Optional(_))
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.backoff.delay()).await;
    }
}

/// A list from any version, as old as it may be.
const ANY_VERSION: &str = "0";
/// Marks the bookmark that ends a streaming list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";
/// What kube accepts.
const MAX_WATCH_SECONDS: u32 = 294;
/// Before asking again for what the server does not offer: an upgrade may bring it.
const REFUSED: Duration = Duration::from_secs(300);
/// A watch that ends sooner is suspicious.
const SHORT: Duration = Duration::from_secs(1);
