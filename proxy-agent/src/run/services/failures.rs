//! Reports of Services that are not served as they should be.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use tracing::{error, info};

use super::ServiceReconciler;
use crate::{
    datapath::Datapath,
    model::objects::ObjectName,
    observe::events::Event,
    sync::{Problem, Reason},
};

/// Problems of Services that `/healthz` and `status` list at most.
const LISTED: usize = 20;
/// New ones that have a line of log each.
const LOGGED: usize = 5;

impl ServiceReconciler {
    /// Reports services that are not served as they should be, and failures of the ranges of service addresses. A service that
    /// fails is its own problem; if the kernel refuses all of them, it is the node's.
    pub(super) fn report_failures(&mut self, datapath: &mut Datapath, cidrs: Result<()>) {
        let problems = self.sync.problems(&mut datapath.services);
        self.report_problems(&problems);
        match cidrs {
            Err(error) => self.reports.health.failed(&error),
            Ok(()) if self.sync.fails_wholly() => {
                self.reports.health.failed(&anyhow!("no Service can be programmed"))
            }
            Ok(()) => self.reports.health.applied(),
        }
        let texts = problems.iter().take(LISTED).map(|problem| problem.text.clone());
        let more = problems.len().saturating_sub(LISTED);
        let more = (more > 0).then(|| format!("and {more} more problems of Services"));
        self.reports.health.set_failed_services(texts.chain(more).collect());
    }

    /// Log, metrics and Events of new problems.
    fn report_problems(&mut self, problems: &BTreeSet<Problem>) {
        let services: BTreeSet<&ObjectName> = problems.iter().map(|problem| &problem.service).collect();
        self.reports.metrics.set_service_failures(services.len());
        for reason in Reason::ALL {
            let count = problems.iter().filter(|problem| problem.reason == reason).count();
            self.reports.metrics.set_service_problems(reason, count);
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
            self.reports.events.send(Event::service_problem(service, reason.name(), &text));
        }
    }
}
