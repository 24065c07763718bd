//! The programs for pods' interfaces, loaded when the first pod needs them: most need none, and the verifier takes its time.

use std::future::pending;

use anyhow::{Context as _, Result};
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

use crate::{
    datapath::{Datapath, Loaded},
    memory,
};

/// Programs that another thread loads.
#[derive(Default)]
pub(super) enum PodPrograms {
    /// No pod needed them.
    #[default]
    Unneeded,
    /// They are being loaded.
    Loading(JoinHandle<Result<Loaded>>),
    /// They were loaded, or the kernel refused them.
    Ended,
}

impl PodPrograms {
    /// Begins to load them.
    pub(super) fn load(&mut self, datapath: &Datapath) {
        *self = Self::Loading(spawn_blocking(datapath.loading_of_pod_programs()));
    }

    /// The same, unless that began before.
    pub(super) fn load_once(&mut self, datapath: &Datapath) {
        if matches!(self, Self::Unneeded) {
            self.load(datapath);
        }
    }

    /// Whether they are being loaded.
    pub(super) fn are_loading(&self) -> bool {
        matches!(self, Self::Loading(_))
    }

    /// Waits until they are loaded; none if the kernel refuses them, which is logged.
    pub(super) async fn end(&mut self) -> Option<Loaded> {
        let Self::Loading(loading) = self else { return pending().await };
        let result = loading.await.context("loading them ended unexpectedly").and_then(|result| result);
        *self = Self::Ended;
        spawn_blocking(memory::give_back);
        result.inspect_err(|error| warn!("{error:#}; pods that sockets cannot serve are not served")).ok()
    }
}
