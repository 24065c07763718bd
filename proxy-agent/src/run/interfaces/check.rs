//! Compares the programs that the kernel has attached with those that should be.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use rtnetlink::Handle;
use tracing::{debug, error, warn};

use super::InterfaceController;
use crate::{
    datapath::{Datapath, Hook},
    net::filters::{self, Direction},
    observe::events::Event,
};

/// How often, if nothing happens at the interfaces.
const EVERY: Duration = Duration::from_secs(60);
/// The first wait after a look at the network that failed; each next one is twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// The longest such wait.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// When hooks are compared.
pub(super) struct Checks {
    last: Instant,
    /// Something happened at the interfaces since.
    is_due: bool,
    /// Hooks that were found missing before: each is logged once.
    logged: BTreeSet<Hook>,
    /// How long to wait if a look at the network fails.
    retry: Duration,
    /// Why the last one failed.
    failure: Option<String>,
}

impl Default for Checks {
    fn default() -> Self {
        Self {
            last: Instant::now(),
            is_due: false,
            logged: BTreeSet::new(),
            retry: FIRST_RETRY,
            failure: None,
        }
    }
}

impl Checks {
    /// Interfaces changed: the change may have detached programs.
    pub(super) fn suspect(&mut self) {
        self.is_due = true;
    }

    /// How long to wait after one more failure; the failure is logged once.
    pub(super) fn failed(&mut self, failure: String) -> Duration {
        if self.failure.as_ref() != Some(&failure) {
            error!("{failure}; trying again");
        }
        self.failure = Some(failure);
        let wait = self.retry;
        self.retry = (wait * 2).min(LAST_RETRY);
        wait
    }

    pub(super) fn succeeded(&mut self) {
        self.retry = FIRST_RETRY;
        if self.failure.take().is_some() {
            debug!("the network could be looked at again");
        }
    }

    /// Why the last one failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}

impl InterfaceController {
    /// Compares, if it is time, the attached programs with those that should be. True if some must be attached again.
    pub(super) async fn check_hooks(&mut self, datapath: &mut Datapath) -> bool {
        if !self.checks.is_due && self.checks.last.elapsed() < EVERY {
            return false;
        }
        (self.checks.last, self.checks.is_due) = (Instant::now(), false);
        let mut lost = datapath.forget_lost_links();
        for (index, hook) in datapath.filter_hooks() {
            if has_filter(&self.netlink, index, &hook).await == Some(false) {
                datapath.forget_filter(index, &hook);
                lost.push(hook);
            }
        }
        self.reports.metrics.restored_hooks(lost.len());
        for hook in &lost {
            let Hook { at, program, how } = hook;
            if self.checks.logged.insert(hook.clone()) {
                warn!(
                    "{program} is not at {at} any more ({how}): something else removed it; attaching it again"
                );
            } else {
                debug!("{program} is not at {at} once more ({how})");
            }
        }
        if !lost.is_empty() {
            let named: Vec<String> =
                lost.iter().map(|hook| format!("{} at {}", hook.program, hook.at)).collect();
            let note = format!("something else detached {}; attached again", named.join(", "));
            self.reports.events.send(Event::hooks_restored(&note));
        }
        if lost.iter().any(Hook::is_of_sockets)
            && let Err(error) = datapath.attach_sockets_again()
        {
            error!("{error:#}");
        }
        !lost.is_empty()
    }
}

/// Whether our filter is attached. `None` if the kernel does not report it.
async fn has_filter(netlink: &Handle, index: u32, hook: &Hook) -> Option<bool> {
    let direction = if hook.program.ends_with("egress") { Direction::Egress } else { Direction::Ingress };
    match filters::read(netlink, index, direction).await {
        Ok(filters) => {
            Some(filters.iter().any(|filter| Datapath::is_own_filter(filter) && filter.name == hook.program))
        }
        Err(error) => {
            debug!("{}: {error:#}", hook.at);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_further_and_further_apart() {
        let mut checks = Checks::default();
        let waits: Vec<u128> = (0..9).map(|_| checks.failed("no".into()).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        checks.succeeded();
        assert_eq!(checks.failed("no".into()), FIRST_RETRY);
    }
}
