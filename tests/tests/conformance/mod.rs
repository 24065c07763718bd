//! The conformance table on the pure core: objects through the agent's conversion, store and planner into tables in
//! memory, and each probe decided by the code that the programs in the kernel run.

mod check;
mod family;
mod fill;
mod node;
mod walk;

use proxy_tests::conformance::{Rule, Site};

/// What went wrong in a rule's steps for one family.
pub(crate) fn failures(rule: &Rule, site: &Site) -> Vec<String> {
    let mut cluster = check::Cluster::new(site);
    let mut failures = Vec::new();
    for (number, step) in rule.core_steps(site).iter().enumerate() {
        if let Err(error) = cluster.apply(&step.objects) {
            failures.push(format!("step {}: {error:#}", number + 1));
        }
        for probe in &step.probes {
            if let Err(error) = cluster.check(probe) {
                let what = format!("{} -> {} by {:?}", probe.from, probe.to, probe.protocol);
                failures.push(format!("step {}: {what}: {error:#}", number + 1));
            }
        }
    }
    failures
}
