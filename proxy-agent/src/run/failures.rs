//! What the running agent says of what it could not do.

use std::time::Instant;

use anyhow::{Result, anyhow};
use tracing::{debug, warn};

use super::Agent;

impl Agent {
    /// Tells of services that the maps did not take, and of ranges of service addresses. A service that fails is its own problem; if all
    /// do, it is the node's.
    pub(super) fn tell_of_failures(&self, cidrs: Result<()>) {
        let failed: Vec<String> = self.sync.problems().cloned().collect();
        self.metrics.set_service_failures(failed.len());
        match cidrs {
            Err(error) => self.health.failed(&error),
            Ok(()) if self.sync.fails_wholly() => {
                self.health.failed(&anyhow!("no Service can be programmed"))
            }
            Ok(()) => self.health.applied(),
        }
        self.health.set_failed_services(failed);
    }

    /// Warns of packets that were dropped since the last look.
    pub(super) fn tell_of_drops(&mut self) {
        match self.datapath.counters() {
            Ok(counts) => {
                self.drops.look(&counts, Instant::now()).iter().for_each(|warning| warn!("{warning}"));
                self.health.set_drops(self.drops.recent());
            }
            Err(error) => debug!("{error:#}"),
        }
    }
}
