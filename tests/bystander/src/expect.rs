//! Compares the results with and without the agent.

use anyhow::{Result, bail, ensure};

use super::Outcome;
use proxy_harness::cluster::LoadReport;

/// An error that names every conversation that fared otherwise than before.
pub fn equal(before: &[Outcome], with: &[Outcome]) -> Result<()> {
    ensure!(before.len() == with.len(), "{} conversations before, {} now", before.len(), with.len());
    let changed = before.iter().zip(with).filter(|(before, with)| before != with);
    let lines: Vec<_> = changed
        .map(|(before, with)| {
            format!("{}: {} of {}, without agent {}", with.what, with.succeeded, with.tried, before.succeeded)
        })
        .collect();
    if !lines.is_empty() {
        bail!("{} of {} differ with the agent:\n  {}", lines.len(), with.len(), lines.join("\n  "));
    }
    Ok(())
}

/// Everything was tried at least this often and nothing failed.
pub fn all_ok(report: &LoadReport, at_least: u64) -> Result<()> {
    ensure!(
        report.failed == 0 && report.ok >= at_least,
        "at least {at_least} and no failure wanted: {report:?}"
    );
    Ok(())
}
