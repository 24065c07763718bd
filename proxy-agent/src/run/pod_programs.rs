//! The programs for pods' interfaces, loaded once the node is served: most pods need none, and the verifier takes its time.

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
pub(super) struct PodPrograms(Option<JoinHandle<Result<Loaded>>>);

impl PodPrograms {
    /// Begins to load them.
    pub(super) fn load(&mut self, datapath: &Datapath) {
        self.0 = Some(spawn_blocking(datapath.loading_of_pod_programs()));
    }

    /// Resolves when they are loaded; a refusal is logged.
    pub(super) async fn loaded(&mut self) -> Loaded {
        if let Some(loading) = &mut self.0 {
            let result = loading.await.context("loading them ended unexpectedly").and_then(|result| result);
            self.0 = None;
            spawn_blocking(memory::give_back);
            match result {
                Ok(loaded) => return loaded,
                Err(error) => warn!("{error:#}; pods that sockets cannot serve are not served"),
            }
        }
        pending().await
    }
}
