//! A line of log for each change, while there are few. A cluster may have thousands of changes a second.

use std::time::{Duration, Instant};

use tracing::{debug, info};

/// Lines within [`WINDOW`] at most.
const LINES: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// Logs changes, and counts those beyond.
#[derive(Debug)]
pub(super) struct Journal {
    since: Instant,
    lines: u32,
    hidden: u64,
}

impl Journal {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, lines: 0, hidden: 0 }
    }

    /// Logs a change, if that is not one too many.
    pub(super) fn note(&mut self, change: impl std::fmt::Display) {
        if self.lines < LINES {
            self.lines += 1;
            info!("{change}");
        } else {
            self.hidden += 1;
            debug!("{change}");
        }
    }

    /// Logs how many changes were not logged when the window ends. To be called regularly.
    pub(super) fn look(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.turn_page(now);
        }
    }

    /// The same at once, so that the next changes have lines regardless of earlier ones.
    pub(super) fn turn_page(&mut self, now: Instant) {
        if let Some(text) = self.begin(now) {
            info!("{text}");
        }
    }

    /// Starts a new window; returns a line about the hidden changes of the last one.
    fn begin(&mut self, now: Instant) -> Option<String> {
        let Self { hidden, since, .. } = std::mem::replace(self, Self::new(now));
        let seconds = now.saturating_duration_since(since).as_secs();
        (hidden > 0)
            .then(|| format!("{hidden} more changes of services in {seconds} s (level debug logs each)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_changes_have_a_line_each() {
        let start = Instant::now();
        let mut journal = Journal::new(start);
        (0..LINES).for_each(|number| journal.note(number));
        assert_eq!(journal.hidden, 0);
        (0..80).for_each(|number| journal.note(number));
        journal.look(start + WINDOW / 2);
        assert_eq!((journal.hidden, journal.lines), (80, LINES));
        let text = journal.begin(start + WINDOW).unwrap();
        assert_eq!(text, "80 more changes of services in 60 s (level debug logs each)");
        assert_eq!((journal.hidden, journal.lines, journal.begin(start)), (0, 0, None));
    }
}
