//! The lock of the agent that writes.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use crate::datapath::pins::Pins;

/// Held by the agent that writes. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Lock {
    directory: File,
}

impl Lock {
    /// Takes the lock of a directory if it is free.
    ///
    /// # Errors
    /// `NotFound` without such a directory.
    pub(crate) fn attempt(root: &Path) -> io::Result<Option<Self>> {
        loop {
            let directory = File::open(root)?;
            match directory.try_lock() {
                Ok(()) if is_at(&directory, root) => return Ok(Some(Self { directory })),
                // The file was removed and created again between the two calls.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// The same for an agent that starts, which makes the directory.
    ///
    /// # Errors
    /// When there can be no such directory.
    pub(crate) fn attempt_below(pins: &Pins) -> Result<Option<Self>> {
        loop {
            pins.create()?;
            match Self::attempt(pins.root()) {
                // `cleanup` removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => {
                    return result.with_context(|| format!("cannot lock {}", pins.root().display()));
                }
            }
        }
    }

    /// Waits for the lock.
    fn wait(pins: &Pins) -> Result<Self> {
        let root = pins.root();
        loop {
            pins.create()?;
            let directory = match File::open(root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                result => result.with_context(|| format!("cannot open {}", root.display()))?,
            };
            match directory.lock() {
                Ok(()) if is_at(&directory, root) => return Ok(Self { directory }),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("cannot lock {}", root.display())),
            }
        }
    }

    /// Whether the locked directory is still the one of that name. Not if `cleanup` removed it.
    pub(crate) fn is_at(&self, root: &Path) -> bool {
        is_at(&self.directory, root)
    }
}

/// Waits for the lock on a separate thread, which does not keep the process from ending.
#[derive(Debug)]
pub(crate) struct Waiting(oneshot::Receiver<Result<Lock>>);

impl Waiting {
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn start(pins: &Pins) -> Result<Self> {
        let (sender, receiver) = oneshot::channel();
        let pins = pins.clone();
        thread::Builder::new()
            .name("lock".to_owned())
            // If the receiver is gone, the lock is released at once.
            .spawn(move || drop(sender.send(Lock::wait(&pins))))
            .context("cannot start the thread that waits for the lock")?;
        Ok(Self(receiver))
    }

    /// Resolves when the lock is taken; may be dropped midway and called again.
    ///
    /// # Errors
    /// When the directory cannot be locked.
    pub(crate) async fn lock(&mut self) -> Result<Lock> {
        (&mut self.0).await.context("the thread that waits for the lock ended")?
    }
}

/// Whether the lock is free. Does not take it.
pub(crate) fn is_free(root: &Path) -> bool {
    match File::open(root) {
        Ok(directory) => directory.try_lock_shared().is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}
