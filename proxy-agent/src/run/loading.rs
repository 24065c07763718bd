//! Programs that another thread loads: the verifier takes its time.

use std::future::pending;

use anyhow::{Context as _, Result};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::datapath::Loaded;

/// Programs that another thread loads, or none.
#[derive(Default)]
pub(super) struct Loading(Option<JoinHandle<Result<Loaded>>>);

impl Loading {
    /// Begins to load some.
    pub(super) fn begin(work: impl FnOnce() -> Result<Loaded> + Send + 'static) -> Self {
        Self(Some(spawn_blocking(work)))
    }

    /// Resolves once, when they are loaded or refused.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub(super) async fn finished(&mut self) -> Result<Loaded> {
        let Some(loading) = &mut self.0 else { return pending().await };
        let result = loading.await.context("loading programs ended unexpectedly");
        self.0 = None;
        result?
    }
}
