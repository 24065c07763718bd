//! How a source is doing, for health checks, metrics and the log.

use std::{collections::BTreeMap, time::SystemTime};

use tokio::sync::watch;

/// How a source is doing. Follow it through the [`watch::Receiver`] of the sender given to `run`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// Each thing that is watched, by its name in the API (`services`) or the folder's path.
    pub watches: BTreeMap<String, WatchState>,
    /// The URL of the API server that answered last.
    pub server: Option<String>,
    /// Its release.
    pub release: Option<Release>,
}

/// A release of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// `1`.
    pub major: String,
    /// `35`, or a vendor's variant of it.
    pub minor: String,
    /// `v1.35.0`, or a vendor's variant of it.
    pub git_version: String,
}

/// How one watch is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchState {
    /// It was listed completely at least once.
    pub synced: bool,
    /// Why it is not up to date right now.
    pub trouble: Option<Trouble>,
    /// Time of the source's last event for it: an object, a bookmark, the end of a list.
    pub last_event: Option<SystemTime>,
    /// How often it was begun.
    pub starts: u64,
    /// How often it failed.
    pub failures: u64,
    /// How often no event came for so long that the watch was made again.
    pub silences: u64,
    /// How often the source went back to an older version.
    pub regressions: u64,
}

/// An outage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The problem, in words. The same for the whole outage.
    pub message: String,
    /// Details of the last attempt: may change from one to the next. Possibly empty.
    pub detail: String,
    /// When it began.
    pub since: SystemTime,
}

impl SourceState {
    /// Whether everything is listed. Stays true in an outage: the objects that were read are still served.
    pub fn is_synced(&self) -> bool {
        !self.watches.is_empty() && self.watches.values().all(|watch| watch.synced)
    }

    /// The outage that began first, if something is wrong now.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.watches.values().filter_map(|watch| watch.trouble.as_ref()).min_by_key(|trouble| trouble.since)
    }
}

/// Reports the state of one watch.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    watch: String,
    state: watch::Sender<SourceState>,
}

impl Reporter {
    /// A reporter for a watch, which begins unsynced.
    pub(super) fn new(watch: &str, state: &watch::Sender<SourceState>) -> Self {
        state.send_modify(|state| {
            state.watches.insert(watch.to_owned(), WatchState::default());
        });
        Self { watch: watch.to_owned(), state: state.clone() }
    }

    /// It begins, or begins again. Receivers are not woken for that, nor for the next.
    pub(super) fn begins(&self) {
        self.note(|watch| watch.starts += 1);
    }

    /// The source sent something for it.
    pub(super) fn heard(&self) {
        self.note(|watch| watch.last_event = Some(SystemTime::now()));
    }

    /// It failed in a way that is expected to pass.
    pub(super) fn failed_quietly(&self) {
        self.note(|watch| watch.failures += 1);
    }

    /// No event came for too long.
    pub(super) fn silent(&self) {
        self.note(|watch| watch.silences += 1);
    }

    /// The source went back to an older version.
    pub(super) fn backwards(&self) {
        self.note(|watch| watch.regressions += 1);
    }

    /// This API server answers. Receivers are not woken for that either.
    pub(super) fn served_by(&self, server: &str) {
        self.state.send_if_modified(|state| {
            if state.server.as_deref() != Some(server) {
                state.server = Some(server.to_owned());
            }
            false
        });
    }

    /// Records a detail that is not a change of the state.
    fn note(&self, note: impl FnOnce(&mut WatchState)) {
        self.state.send_if_modified(|state| {
            state.watches.get_mut(&self.watch).map(note);
            false
        });
    }

    /// The list is complete.
    pub(super) fn synced(&self) {
        self.change(|watch| watch.synced = true);
    }

    /// Something failed. Returns whether that is news: neither this watch nor another one has reported the same.
    pub(super) fn failed(&self, message: &str, detail: &str) -> bool {
        let mut news = false;
        self.state.send_if_modified(|state| {
            let is_known = state
                .watches
                .values()
                .any(|watch| watch.trouble.as_ref().is_some_and(|t| t.message == message));
            news = !is_known;
            let Some(watch) = state.watches.get_mut(&self.watch) else {
                return false;
            };
            let since = watch.trouble.as_ref().map_or_else(SystemTime::now, |trouble| trouble.since);
            let trouble = Some(Trouble { message: message.to_owned(), detail: detail.to_owned(), since });
            let changed = watch.trouble != trouble;
            watch.failures += 1;
            watch.trouble = trouble;
            changed
        });
        news
    }

    /// All is well. Gives the outage that this ends, if it is the last of its kind.
    pub(super) fn recovered(&self) -> Option<Trouble> {
        let mut ended = None;
        self.state.send_if_modified(|state| {
            let Some(trouble) = state.watches.get_mut(&self.watch).and_then(|watch| watch.trouble.take())
            else {
                return false;
            };
            let mut others = state.watches.values().filter_map(|watch| watch.trouble.as_ref());
            if !others.any(|other| other.message == trouble.message) {
                ended = Some(trouble);
            }
            true
        });
        ended
    }

    fn change(&self, change: impl FnOnce(&mut WatchState)) {
        self.state.send_if_modified(|state| {
            let Some(watch) = state.watches.get_mut(&self.watch) else {
                return false;
            };
            let before = watch.clone();
            change(watch);
            *watch != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_news_once_and_over_once() {
        let (sender, receiver) = watch::channel(SourceState::default());
        let [a, b] = ["services", "nodes"].map(|name| Reporter::new(name, &sender));
        a.synced();
        assert!(!receiver.borrow().is_synced());
        b.synced();
        assert!(receiver.borrow().is_synced());

        assert!(a.failed("refused", ""));
        assert!(!a.failed("refused", "in another way"));
        assert!(!b.failed("refused", ""), "another watch has reported it");
        assert!(b.failed("forbidden", ""), "something else is wrong now");
        assert!(receiver.borrow().is_synced(), "what was read is still served");
        assert_eq!(receiver.borrow().trouble().unwrap().message, "refused");

        b.failed("refused", "");
        assert_eq!(b.recovered(), None, "the other watch is still waiting");
        assert_eq!(a.recovered().unwrap().message, "refused");
        assert_eq!(a.recovered(), None);
        assert_eq!(receiver.borrow().trouble(), None);
    }

    #[test]
    fn notes_wake_no_receiver() {
        let (sender, mut receiver) = watch::channel(SourceState::default());
        let reporter = Reporter::new("services", &sender);
        receiver.mark_unchanged();
        reporter.begins();
        reporter.heard();
        assert!(!receiver.has_changed().unwrap());
        reporter.failed("refused", "");
        let state = receiver.borrow().watches["services"].clone();
        assert_eq!((state.starts, state.failures), (1, 1));
        assert!(state.last_event.is_some());
    }
}
