//! How long the parts of a test take: for work on the time that machines take.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// One part after the other.
#[derive(Debug)]
pub(super) struct Laps {
    start: Instant,
    all: Vec<(String, Duration)>,
}

impl Default for Laps {
    fn default() -> Self {
        Self { start: Instant::now(), all: Vec::new() }
    }
}

impl Laps {
    /// Ends a part: everything since the one before.
    pub(super) fn end(&mut self, name: &str) {
        let before: Duration = self.all.iter().map(|(_, time)| *time).sum();
        self.all.push((name.to_owned(), self.start.elapsed().saturating_sub(before)));
    }
}

impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Duration = self.all.iter().map(|(_, time)| *time).sum();
        write!(f, "{:.1} s", all.as_secs_f32())?;
        for (number, (name, time)) in self.all.iter().enumerate() {
            let before = if number == 0 { ":" } else { "," };
            write!(f, "{before} {name} {:.1}", time.as_secs_f32())?;
        }
        Ok(())
    }
}
