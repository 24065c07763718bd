//! Collects failures, so that one does not hide the others.

use std::{fmt::Display, thread};

use anyhow::{Result, bail};

/// So many failures suffice, and each may take seconds.
const ENOUGH: usize = 30;

/// How many cases run at a time, of those that may.
const AT_A_TIME: usize = 8;

/// The failures of a table of cases.
#[derive(Debug, Default)]
pub struct Failures {
    cases: usize,
    failed: Vec<String>,
}

impl Failures {
    /// Runs one case, unless so many have failed that more would show nothing new.
    pub fn case(&mut self, what: impl Display, case: impl FnOnce() -> Result<()>) {
        if self.failed.len() >= ENOUGH {
            return;
        }
        self.note(what, case());
    }

    /// Runs cases side by side: those that wait rather than work, and do not disturb each other.
    pub fn side_by_side<T: Send>(&mut self, cases: Vec<(String, T)>, case: impl Fn(T) -> Result<()> + Sync) {
        let mut cases = cases.into_iter().peekable();
        while cases.peek().is_some() && self.failed.len() < ENOUGH {
            let results = thread::scope(|scope| {
                let started = cases.by_ref().take(AT_A_TIME).map(|(what, input)| {
                    let case = &case;
                    (what, scope.spawn(move || case(input)))
                });
                let started: Vec<_> = started.collect();
                let ended = started.into_iter().map(|(what, thread)| (what, thread.join()));
                ended.collect::<Vec<_>>()
            });
            for (what, result) in results {
                self.note(what, result.unwrap_or_else(|_| bail!("the case panicked")));
            }
        }
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
