//! The programs for pods' interfaces, loaded once the node is served: most pods need none.

use std::future::pending;

use tokio::task::spawn_blocking;
use tracing::warn;

use super::loading::Loading;
use crate::{
    datapath::{Datapath, Loaded},
    memory,
};

/// Programs that another thread loads.
#[derive(Default)]
pub(super) struct PodPrograms(Loading);

impl PodPrograms {
    /// Begins to load them.
    pub(super) fn load(&mut self, datapath: &Datapath) {
        self.0 = Loading::begin(datapath.loading_of_pod_programs());
    }

    /// Resolves when they are loaded; a refusal is logged.
    pub(super) async fn loaded(&mut self) -> Loaded {
        let result = self.0.finished().await;
        spawn_blocking(memory::give_back);
        match result {
            Ok(loaded) => loaded,
            Err(error) => {
                warn!("{error:#}; pods that sockets cannot serve are not served");
                pending().await
            }
        }
    }
}
