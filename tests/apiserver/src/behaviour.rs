//! Features and faults of the server.

use std::time::Duration;

/// How the server treats requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Answers.
    #[default]
    Serve,
    /// Takes connections and requests and never answers; running watches fall silent.
    Hang,
    /// Is not there: connections are refused.
    Refuse,
    /// Answers every new request with this HTTP status.
    Fail(u16),
}

/// Features and faults of the server.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// How it treats requests.
    pub mode: Mode,
    /// Lists can be streamed; otherwise they are refused with 422.
    pub streaming_lists: bool,
    /// Streaming lists get the bookmark that ends them.
    pub initial_bookmark: bool,
    /// Field selectors other than `metadata.name` are known; otherwise they are refused with 400.
    pub field_selectors: bool,
    /// There are ServiceCIDRs; otherwise requests for them get 404, as from servers before 1.33.
    pub service_cidrs: bool,
    /// 410 Gone is an HTTP status; otherwise an ERROR event in a watch.
    pub gone_as_status: bool,
    /// The next list of Services or EndpointSlices breaks off, once: a streaming one after this many objects, one in
    /// pages after the first page. All connections are cut.
    pub cut_next_list_after: Option<usize>,
    /// Every list of Services or EndpointSlices breaks off like that, not only the next.
    pub cut_all_lists: bool,
    /// How often watches get a bookmark.
    pub bookmark_every: Duration,
    /// Watches are granted and bring nothing.
    pub mute_watches: bool,
    /// Plain lists from any version are whole, from the watch cache, whatever their limit.
    pub watch_cache: bool,
    /// Watches from versions that are not there yet are granted, and bring nothing until then, as from a watch cache.
    pub future_watches: bool,
    /// Etcd's quorum answers; otherwise lists of the newest version are refused with 504, and the cache may be old.
    pub quorum: bool,
    /// The `Retry-After` of [`Mode::Fail`], in seconds.
    pub retry_after: Option<u32>,
    /// The bearer token that requests must have.
    pub token: Option<&'static str>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            mode: Mode::Serve,
            streaming_lists: true,
            initial_bookmark: true,
            field_selectors: true,
            service_cidrs: true,
            gone_as_status: false,
            cut_next_list_after: None,
            cut_all_lists: false,
            bookmark_every: Duration::from_secs(60),
            mute_watches: false,
            watch_cache: true,
            future_watches: true,
            quorum: true,
            retry_after: None,
            token: None,
        }
    }
}

impl Behaviour {
    /// Whether this list breaks off.
    pub(super) fn cuts_list(&mut self) -> bool {
        let cuts = self.cut_next_list_after.is_some();
        if !self.cut_all_lists {
            self.cut_next_list_after = None;
        }
        cuts
    }
}
