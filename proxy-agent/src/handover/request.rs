//! A request for the lock, and the running agent that sees it.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::lock::{Lock, is_at};
use crate::{
    datapath::pins::{Pins, SUCCESSOR},
    folder_watch::FolderWatch,
};

/// How often to look for changes that inotify does not show.
const RECHECK: Duration = Duration::from_secs(1);

/// A request, until it is dropped. A process that is killed leaves the directory, but not its lock, and so no request.
#[derive(Debug)]
pub(crate) struct Request {
    path: PathBuf,
    _directory: File,
}

impl Request {
    /// Requests that the agent with the lock of `root` releases it; `None` while another one requests it.
    ///
    /// # Errors
    /// When there can be no such directory.
    pub(crate) fn attempt(root: &Path) -> io::Result<Option<Self>> {
        let path = root.join(SUCCESSOR);
        loop {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let directory = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result?,
            };
            match directory.try_lock() {
                Ok(()) if is_at(&directory, &path) => return Ok(Some(Self { path, _directory: directory })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Whether a process requests the lock.
    pub(crate) fn is_there(root: &Path) -> bool {
        let directory = File::open(root.join(SUCCESSOR));
        directory.is_ok_and(|directory| matches!(directory.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}

/// Notices for the agent that has the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Another agent requests the lock.
    Asked,
    /// Directories of pins are gone.
    Gone,
}

/// The lock, and the notices for its holder.
pub(crate) struct Holder {
    pins: Pins,
    lock: Lock,
    watch: Watch,
}

impl Holder {
    /// Needs a tokio runtime.
    pub(crate) fn new(pins: &Pins, lock: Lock) -> Self {
        Self { pins: pins.clone(), lock, watch: Watch::new(pins.root()) }
    }

    /// Resolves when there is something to do; may be dropped midway. Takes no system call before something changes, or a second
    /// has passed: it is called again with each change of a Service.
    pub(crate) async fn notice(&mut self) -> Notice {
        loop {
            self.watch.changed().await;
            if !self.lock.is_at(self.pins.root()) || !self.pins.are_there() {
                return Notice::Gone;
            }
            if Request::is_there(self.pins.root()) {
                return Notice::Asked;
            }
        }
    }

    /// Releases the lock; the directory can still be watched.
    pub(crate) fn release(self) -> (PathBuf, Watch) {
        (self.pins.root().to_owned(), self.watch)
    }
}

/// Watches the directory.
pub(crate) struct Watch {
    events: FolderWatch,
    recheck: Interval,
}

impl Watch {
    fn new(root: &Path) -> Self {
        let mut recheck = interval(RECHECK);
        recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { events: FolderWatch::new(root.to_owned()), recheck }
    }

    /// Resolves when something changed, and once a second.
    pub(crate) async fn changed(&mut self) {
        tokio::select! {
            _ = self.events.settled() => {}
            // At once the first time.
            _ = self.recheck.tick() => {}
        }
        // Before the caller looks, so that a change in the meantime is seen as well.
        self.events.attach();
    }
}
