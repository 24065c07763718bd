//! The kernel's connection tracking, set as kube-proxy sets it.

use tracing::{info, warn};

use super::reports::Reports;
use crate::{
    net::conntrack_sysctls::{ConntrackSysctls, Outcome},
    observe::events::Event,
};

/// Settings to apply once the kernel has connection tracking.
#[derive(Debug)]
pub(super) struct Conntrack {
    wanted: ConntrackSysctls,
    is_done: bool,
    /// The last log line.
    logged: Vec<String>,
}

impl Conntrack {
    pub(super) fn new(wanted: ConntrackSysctls) -> Self {
        Self { wanted, is_done: false, logged: Vec::new() }
    }

    /// Applies settings that were not applied yet: once, so that a later change stays.
    pub(super) fn apply(&mut self, reports: &Reports) {
        if self.is_done {
            return;
        }
        let Outcome { is_loaded, changed, of_host, failed, is_read_only } = self.wanted.apply();
        self.is_done = is_loaded && failed.is_empty();
        for change in &changed {
            info!("conntrack: {change}");
        }
        reports.metrics.set_conntrack_failures(failed.len());
        let problems = failed.iter().map(|failure| format!("conntrack: {failure}")).collect::<Vec<_>>();
        if self.logged != problems {
            for problem in &problems {
                warn!("{problem}");
            }
            if !problems.is_empty() {
                reports.events.send(Event::conntrack_failed(is_read_only, &problems.join("; ")));
            }
            self.logged.clone_from(&problems);
        }
        if self.is_done {
            for setting in &of_host {
                info!("conntrack: {setting}: only the host's first network namespace can set it");
            }
        }
        reports.health.set_problems("conntrack", problems);
    }
}
