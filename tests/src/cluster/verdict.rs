//! Collecting what went wrong, so that one failure does not hide the others.

use std::fmt::Display;

use anyhow::{Result, bail};

/// So many failures say enough, and each may take seconds.
const ENOUGH: usize = 30;

/// The failures of a table of cases.
#[derive(Debug, Default)]
pub struct Failures {
    cases: usize,
    failed: Vec<String>,
}

impl Failures {
    /// Runs one case, unless so many have failed that more would say nothing new.
    pub fn case(&mut self, what: impl Display, case: impl FnOnce() -> Result<()>) {
        if self.failed.len() >= ENOUGH {
            return;
        }
        self.note(what, case());
    }

    /// Takes down how something went.
    pub fn note(&mut self, what: impl Display, result: Result<()>) {
        self.cases += 1;
        if let Err(error) = result {
            self.failed.push(format!("{what}: {error:#}"));
        }
    }

    /// An error that lists every case that failed.
    pub fn verdict(self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("{} of {} cases failed:\n  {}", self.failed.len(), self.cases, self.failed.join("\n  "));
        }
        Ok(())
    }
}
