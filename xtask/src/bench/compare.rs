//! Results that are worse than in an earlier run.

use std::ops::RangeInclusive;

use proxy_figures::{Better, Figure, Summary, Unit};

use super::results::Results;

/// Smaller changes are none.
const LEAST: f64 = 1.1;

/// Two runs.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Figures that both have.
    pub(super) compared: usize,
    /// Worse figures, the worst first.
    pub(super) regressions: Vec<Change>,
    /// How many are better.
    pub(super) improvements: usize,
    /// Further notes for a reader.
    pub(super) notes: Vec<String>,
}

/// A changed figure.
#[derive(Debug)]
pub(super) struct Change {
    /// Benchmark, table, row and column.
    pub(super) what: String,
    pub(super) unit: Unit,
    better: Better,
    pub(super) before: f64,
    pub(super) now: f64,
}

impl Change {
    /// This run's over the earlier one's.
    pub(super) fn ratio(&self) -> f64 {
        self.now / self.before
    }

    /// How many times worse it is.
    fn loss(&self) -> f64 {
        match self.better {
            Better::Less => self.ratio(),
            Better::More => 1.0 / self.ratio(),
        }
    }
}

impl Comparison {
    /// Compares the benchmarks that both have.
    pub(super) fn of(earlier: &Results, now: &Results) -> Self {
        let mut comparison = Self::default();
        for measured in &now.parts {
            let bench = &measured.part.bench;
            let Some(before) = earlier.part(bench) else {
                comparison.notes.push(format!("{bench}: not in the earlier run"));
                continue;
            };
            if before.place != measured.place {
                comparison.notes.push(format!(
                    "{bench}: the earlier run was on another machine or kernel; its numbers hardly compare"
                ));
            }
            let (old, new) = (&before.part.figures, &measured.part.figures);
            for figure in new {
                if let Some(old) = old.iter().find(|old| is_same(old, figure)) {
                    comparison.add(bench, old, figure);
                }
            }
            let lacking = |of: &[Figure], all: &[Figure]| {
                of.iter().filter(|figure| !all.iter().any(|other| is_same(figure, other))).count()
            };
            let (added, gone) = (lacking(new, old), lacking(old, new));
            if added + gone > 0 {
                comparison.notes.push(format!("{bench}: {added} figures are new, {gone} are gone"));
            }
        }
        comparison.regressions.sort_by(|a, b| b.loss().total_cmp(&a.loss()));
        comparison
    }

    fn add(&mut self, bench: &str, old: &Figure, new: &Figure) {
        self.compared += 1;
        let change = Change {
            what: format!("{bench}: {}: {}, {}", new.table, new.row, new.column),
            unit: new.unit,
            better: new.better,
            before: old.value.value,
            now: new.value.value,
        };
        let (before, now) = (spread(&old.value), spread(&new.value));
        if before.start() <= now.end() && now.start() <= before.end() {
            return;
        }
        // A count may be zero, like failures. For other units, a ratio to zero, or to a value below the baseline, has no meaning.
        let is_counted = change.unit == Unit::Count && change.before >= 0.0 && change.now >= 0.0;
        if !(is_counted || change.before > 0.0 && change.now > 0.0) {
            return;
        }
        if change.loss() >= LEAST {
            self.regressions.push(change);
        } else if change.loss() <= 1.0 / LEAST {
            self.improvements += 1;
        }
    }
}

fn is_same(a: &Figure, b: &Figure) -> bool {
    (&a.table, &a.row, &a.column, a.unit) == (&b.table, &b.row, &b.column, b.unit)
}

/// The range of values in which another run is no surprise: the quartiles of a median; for a minimum, which lies below them,
/// up to the lower one.
fn spread(Summary { value, low, high, .. }: &Summary) -> RangeInclusive<f64> {
    if value < low {
        *value..=*low
    } else if value > high {
        *high..=*value
    } else {
        *low..=*high
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
