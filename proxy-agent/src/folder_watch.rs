//! Watches a folder for files that were changed and completely written.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

/// Events of one burst come this close together.
const BURST: Duration = Duration::from_millis(5);
/// A file that is being written is read when it is closed, or quiet for this long.
const QUIET: Duration = Duration::from_millis(100);
/// The longest wait for quiet.
const LONGEST: Duration = Duration::from_secs(1);

/// Which files to read again although their size and time may be the same.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    /// These.
    files: BTreeSet<OsString>,
    /// All: Kubernetes exchanged the contents of a volume, or events were lost.
    all: bool,
    /// Written to, but not closed yet.
    open: BTreeSet<OsString>,
}

impl Touched {
    /// Whether this file must be read again.
    pub(crate) fn includes(&self, name: &OsStr) -> bool {
        self.all || self.files.contains(name)
    }

    /// All files.
    #[cfg(test)]
    pub(crate) fn touch_all(&mut self) {
        self.all = true;
    }

    fn add(&mut self, event: Event) {
        self.all |= event.need_rescan();
        let done = !matches!(event.kind, EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)));
        for name in event.paths.iter().filter_map(|path| path.file_name()) {
            // A mounted ConfigMap's files link into `..data`, itself a link, which is exchanged as a whole.
            self.all |= name.as_encoded_bytes().starts_with(b"..");
            self.files.insert(name.to_owned());
            if done {
                self.open.remove(name);
            } else {
                self.open.insert(name.to_owned());
            }
        }
    }
}

/// Watches the folder, whichever folder has its name at the moment.
pub(crate) struct FolderWatch {
    path: PathBuf,
    /// Device and inode of the watched folder.
    attached: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
    sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
    /// Changes since [`Self::settled`] returned.
    touched: Option<Touched>,
    warned: bool,
}

impl FolderWatch {
    pub(crate) fn new(path: PathBuf) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self { path, attached: None, watcher: None, sender, events, touched: None, warned: false }
    }

    /// Watches the folder if it exists and is not watched yet. Without inotify the caller's re-checks must do.
    pub(crate) fn attach(&mut self) {
        let identity = identity(&self.path);
        if identity == self.attached {
            return;
        }
        self.watcher = None;
        self.attached = identity;
        if identity.is_none() {
            return;
        }
        match self.watcher() {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) if self.warned => debug!("still no inotify: {error}"),
            Err(error) => {
                self.warned = true;
                let path = self.path.display();
                warn!("cannot watch {path} ({error}): changes are found by looking every few seconds");
            }
        }
    }

    fn watcher(&self) -> notify::Result<RecommendedWatcher> {
        let sender = self.sender.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Ok(event) = event
                && matters(&event)
            {
                // The receiver lives as long as the watcher.
                sender.send(event).ok();
            }
        })?;
        watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Waits for a change, and then until it seems finished. Forgets nothing if dropped midway.
    pub(crate) async fn settled(&mut self) -> Touched {
        if self.touched.is_none() {
            match self.events.recv().await {
                Some(event) => self.touched.get_or_insert_default().add(event),
                None => std::future::pending().await,
            }
        }
        let end = Instant::now() + LONGEST;
        loop {
            let quiet = match &self.touched {
                Some(touched) if !touched.open.is_empty() => QUIET,
                _ => BURST,
            };
            match timeout_at((Instant::now() + quiet).min(end), self.events.recv()).await {
                Ok(Some(event)) => self.touched.get_or_insert_default().add(event),
                Ok(None) | Err(_) => return self.touched.take().unwrap_or_default(),
            }
        }
    }
}

/// Our own reads do not count as changes.
fn matters(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Metadata(_)) => false,
        _ => true,
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    metadata.is_dir().then(|| (metadata.dev(), metadata.ino()))
}
