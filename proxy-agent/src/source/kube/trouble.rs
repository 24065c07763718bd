//! The watcher's reaction to a failed list or watch.

use std::{fmt::Debug, time::Duration};

use kube::core::Resource;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{failure::Failure, subject::Objects, watch::Watcher};

/// The pause before the next request for something that the server does not offer: an upgrade may bring it.
const REFUSED: Duration = Duration::from_secs(300);

impl<K> Watcher<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    /// Falls back, lists again or just waits, as the failure demands.
    pub(super) async fn handle(&mut self, failure: Failure) {
        let plural = K::plural(&());
        if matches!(failure, Failure::Silent) {
            debug!("{plural}: no event and no bookmark for {:?}: checking the version", self.timing.silence);
            self.reporter.silent();
            self.is_doubtful = true;
            return;
        }
        if self.fall_back(&failure) {
            return;
        }
        if matches!(failure, Failure::Backwards { .. }) {
            self.report_backwards(&failure);
            self.position.relist_newest();
            return self.pause(None).await;
        }
        self.doubt();
        if failure.lost_events() && self.position.version.is_some() {
            debug!("{plural}: {failure}: listing again");
            self.position.relist();
            // All agents of a cluster get here together when the server forgets its history.
            return self.pause(failure.retry_after()).await;
        }
        // If the server refuses even a list, its resource version may be the reason.
        if self.position.version.is_none() && matches!(failure.code(), Some(400 | 410 | 504)) {
            self.position.relist_newest();
        }
        self.report(&failure, &plural).await;
    }

    /// Reports a failure, and waits.
    async fn report(&mut self, failure: &Failure, plural: &str) {
        let (message, detail) = failure.describe(&self.servers, self.verb, plural);
        let wait = failure.retry_after();
        if self.is_forbidden_for_now(failure) {
            debug!("{plural}: {message}: {detail}; retrying");
            self.reporter.failed_quietly();
            return self.pause(wait).await;
        }
        if self.is_optional() {
            // The other watches report an outage.
            let is_refusal = matches!(failure.code(), Some(403 | 404));
            if is_refusal && !self.logged_refusal {
                self.logged_refusal = true;
                info!("the API server does not offer {plural}: going without ({message}: {detail})");
            }
            debug!("{plural}: {message}: {detail}; retrying");
            return if is_refusal { tokio::time::sleep(REFUSED).await } else { self.pause(wait).await };
        }
        if self.reporter.failed(&message, &detail) {
            warn!("{message}: {detail}; retrying");
        } else {
            debug!("{plural}: {message}: {detail}; retrying");
        }
        self.pause(wait).await;
    }

    /// An API server that has just started does not know its roles yet, and forbids everything.
    fn is_forbidden_for_now(&mut self, failure: &Failure) -> bool {
        if failure.code() != Some(403) {
            self.forbidden_since = None;
            return false;
        }
        let since = *self.forbidden_since.get_or_insert_with(Instant::now);
        since.elapsed() < self.timing.forbidden_grace
    }

    /// During a long outage etcd may have been restored from a backup. A watch from a version of the future would be
    /// accepted, and would miss the events until then.
    fn doubt(&mut self) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        self.is_doubtful |= since.elapsed() >= self.timing.long_outage;
    }

    pub(super) fn report_backwards(&mut self, failure: &Failure) {
        if !std::mem::replace(&mut self.reported_backwards, true) {
            let server = self.servers.current();
            warn!(
                "the API server at {server} went backwards with {}: {failure}: listing from etcd \
                 (a backup was restored, or this API server is behind)",
                K::plural(&())
            );
            self.reporter.backwards();
        }
    }

    /// Simplifies the request if the server does not understand it. Returns whether anything changed.
    fn fall_back(&mut self, failure: &Failure) -> bool {
        // This node cannot do without its name.
        let optional_fields =
            self.subject.objects != Objects::ThisNode && self.subject.selectors.fields.is_some();
        let about_fields = matches!(failure, Failure::Request(kube::Error::Api(status))
            if status.message.contains("field label") || status.message.contains("field selector"));
        let refused_fields = failure.code() == Some(400) && optional_fields;
        let refused_stream = self.position.version.is_none()
            && self.verb == "watch"
            && (matches!(failure, Failure::Endless) || matches!(failure.code(), Some(400 | 422)));

        let plural = K::plural(&());
        if refused_fields && (about_fields || !refused_stream) {
            info!("the API server does not know the field selector for {plural}: filtering here");
            self.subject.selectors.fields = None;
        } else if refused_stream {
            let pause = self.timing.plain_lists;
            info!("the API server does not stream lists of {plural} ({failure}): plain lists for {pause:?}");
            self.plain_until = Some(Instant::now() + pause);
        } else {
            return false;
        }
        true
    }
}
