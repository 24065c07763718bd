//! What the running agent says of what it could not do.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Result, anyhow};
use tracing::{debug, error, info, warn};

use super::Agent;
use crate::{
    model::objects::ObjectName,
    observe::events::Event,
    sync::{Problem, Reason},
};

/// Problems of Services that `/healthz` and `status` list at most.
const LISTED: usize = 20;
/// New ones that have a line of log each.
const LOGGED: usize = 5;

impl Agent {
    /// Tells of services that are not served as they should be, and of ranges of service addresses. A service that fails is its own
    /// problem; if the kernel refuses all of them, it is the node's.
    pub(super) fn tell_of_failures(&mut self, cidrs: Result<()>) {
        let problems = self.sync.problems(&mut self.datapath.services);
        self.tell_of_problems(&problems);
        match cidrs {
            Err(error) => self.health.failed(&error),
            Ok(()) if self.sync.fails_wholly() => {
                self.health.failed(&anyhow!("no Service can be programmed"))
            }
            Ok(()) => self.health.applied(),
        }
        let texts = problems.iter().take(LISTED).map(|problem| problem.text.clone());
        let more = problems.len().saturating_sub(LISTED);
        let more = (more > 0).then(|| format!("and {more} more problems of Services"));
        self.health.set_failed_services(texts.chain(more).collect());
    }

    /// Log, metrics and Events of what is new.
    fn tell_of_problems(&mut self, problems: &BTreeSet<Problem>) {
        let services: BTreeSet<&ObjectName> = problems.iter().map(|problem| &problem.service).collect();
        self.metrics.set_service_failures(services.len());
        for reason in Reason::ALL {
            let count = problems.iter().filter(|problem| problem.reason == reason).count();
            self.metrics.set_service_problems(reason, count);
        }
        let (new, solved) = self.sync.report(problems);
        for problem in new.iter().take(LOGGED) {
            error!("{}", problem.text);
        }
        if new.len() > LOGGED {
            error!("{} more Services have problems: `proxy-agent status` shows them", new.len() - LOGGED);
        }
        if solved > 0 {
            info!("{solved} Services have no problem any more");
        }
        for Problem { service, reason, text } in new {
            self.events.send(Event::service_problem(service, reason.name(), &text));
        }
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
