//! Watches, streaming lists included.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Inner, Mode, Request, Resource, Shared,
    selector::Selector,
    state::{Resources as _, TOO_NEW, event, status},
};

/// A watch that was granted.
pub(super) struct WatchRequest {
    resource: Resource,
    selector: Selector,
    /// Where to begin; none: with all objects.
    version: Option<u64>,
    bookmarks: bool,
    initial_bookmark: bool,
    lifetime: Duration,
    /// The history before the beginning is forgotten.
    gone: bool,
}

impl WatchRequest {
    /// Grants a watch, or gives status, reason and message of the refusal.
    pub(super) fn new(
        inner: &Inner,
        request: &Request,
        selector: Selector,
    ) -> Result<Self, (u16, &'static str, &'static str)> {
        let query = |key: &str| request.query.get(key).map(String::as_str);
        let streaming_list = query("sendInitialEvents") == Some("true");
        if streaming_list && !inner.behaviour.streaming_lists {
            return Err((
                422,
                "Invalid",
                "sendInitialEvents is forbidden for watch unless the WatchList feature is on",
            ));
        }
        let version = match query("resourceVersion") {
            _ if streaming_list => None,
            None | Some("" | "0") => None,
            Some(version) => {
                Some(version.parse().map_err(|_| (400, "BadRequest", "invalid resource version"))?)
            }
        };
        let oldest = query("resourceVersion").and_then(|oldest| oldest.parse().ok()).unwrap_or(0);
        let is_future = oldest > inner.state.version();
        if is_future && (streaming_list || !inner.behaviour.future_watches) {
            return Err((504, "Timeout", TOO_NEW));
        }
        let gone = version.is_some_and(|version| !inner.state.remembers(version));
        if gone && inner.behaviour.gone_as_status {
            return Err((410, "Expired", TOO_OLD));
        }
        Ok(Self {
            resource: request.resource,
            selector,
            version,
            bookmarks: query("allowWatchBookmarks") == Some("true"),
            initial_bookmark: streaming_list && inner.behaviour.initial_bookmark,
            lifetime: Duration::from_secs(
                query("timeoutSeconds").and_then(|s| s.parse().ok()).unwrap_or(1800),
            ),
            gone,
        })
    }

    fn bookmark(&self, version: u64, annotations: &Value) -> Value {
        let object = json!({
            "kind": self.resource.kind(), "apiVersion": self.resource.api_version(),
            "metadata": {"resourceVersion": version.to_string(), "annotations": annotations},
        });
        event("BOOKMARK", &object)
    }
}

const TOO_OLD: &str = "too old resource version";

/// Writes events until the watch's time has passed, it expires, or the reader is gone.
pub(super) async fn run(watch: WatchRequest, sender: mpsc::Sender<Bytes>, shared: Arc<Shared>) {
    let send = async |event: Value| sender.send(format!("{event}\n").into()).await.is_ok();
    if watch.gone {
        send(event("ERROR", &status(410, "Expired", TOO_OLD))).await;
        return;
    }
    let end = Instant::now() + watch.lifetime;
    let mut changed = shared.changed.subscribe();
    let (mut bookmarks_sent, expiries_before) = {
        let inner = shared.lock();
        (inner.bookmarks_asked, inner.expiries_asked)
    };

    let mut version = match watch.version {
        Some(version) => version,
        None => {
            let (list, cut_after) = {
                let inner = &mut *shared.lock();
                let list = inner.state.list(watch.resource, &watch.selector);
                let cut = &mut inner.behaviour.cut_next_list_after;
                let all = inner.behaviour.cut_all_lists;
                (
                    list,
                    cut.filter(|_| watch.resource.is_cut()).inspect(|_| {
                        if !all {
                            *cut = None
                        }
                    }),
                )
            };
            for (n, object) in list.items.iter().enumerate() {
                if cut_after == Some(n) {
                    // The channel is empty: all events are on their way to the client.
                    drop(sender.reserve().await);
                    shared.cut_connections();
                    return;
                }
                if !send(event("ADDED", object)).await {
                    return;
                }
            }
            if watch.initial_bookmark
                && !send(watch.bookmark(list.version, &json!({"k8s.io/initial-events-end": "true"}))).await
            {
                return;
            }
            list.version
        }
    };

    loop {
        changed.mark_unchanged();
        let (events, bookmark_due, expired, every, now) = {
            let inner = shared.lock();
            if inner.behaviour.mode == Mode::Hang || inner.behaviour.mute_watches {
                (Vec::new(), false, false, Duration::MAX, version)
            } else {
                let events = inner.state.events_after(version, watch.resource, &watch.selector);
                let due = inner.bookmarks_asked > bookmarks_sent;
                bookmarks_sent = inner.bookmarks_asked;
                let expired = inner.expiries_asked > expiries_before;
                (events, due, expired, inner.behaviour.bookmark_every, inner.state.version())
            }
        };
        // From the future: nothing until then.
        let is_behind = now < version;
        version = version.max(now);
        for event in events {
            if !send(event).await {
                return;
            }
        }
        if expired {
            send(event("ERROR", &status(410, "Expired", TOO_OLD))).await;
            return;
        }
        if bookmark_due && watch.bookmarks && !is_behind && !send(watch.bookmark(version, &json!({}))).await {
            return;
        }
        tokio::select! {
            // The time of a silent watch passes as well, but the client does not see it.
            () = sleep_until(end), if every != Duration::MAX => return,
            () = sender.closed() => return,
            waited = timeout(every, changed.changed()) => {
                let is_due = waited.is_err() && watch.bookmarks && !is_behind;
                if is_due && !send(watch.bookmark(version, &json!({}))).await {
                    return;
                }
            }
        }
    }
}
