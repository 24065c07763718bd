//! A measured number, with its spread.

use serde::{Deserialize, Serialize};

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    /// Of time.
    Nanoseconds,
    /// Of time.
    Microseconds,
    /// Of time.
    Milliseconds,
    /// Of time.
    Seconds,
    /// Operations, connections or packets in a second.
    PerSecond,
    /// Of transferred data.
    MegabitsPerSecond,
    /// Of memory.
    Mebibytes,
    /// One number over another, like a rate over that of the floor.
    Ratio,
    /// Of a whole.
    Percent,
    /// Of anything else, like system calls.
    Count,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Better {
    /// Times, memory.
    Less,
    /// Rates.
    More,
}

/// A cell of a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    /// The table's title, like "Established flows, IPv4".
    pub table: String,
    /// The row's title, like "NodePort, remote backend".
    pub row: String,
    /// The column's title, like "ours, XDP" or "nftables".
    pub column: String,
    /// Of the value.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// The number.
    pub value: Summary,
}

/// A number from several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The number that stands for the runs: their median, or for what noise only adds to, their minimum.
    pub value: f64,
    /// The lower quartile.
    pub low: f64,
    /// The upper quartile.
    pub high: f64,
    /// How many runs there were.
    pub runs: usize,
}

impl Summary {
    /// The median of the runs; zero of none.
    pub fn median(runs: impl IntoIterator<Item = f64>) -> Self {
        let runs = sorted(runs);
        Self { value: quantile(&runs, 0.5), ..Self::spread(&runs) }
    }

    /// The smallest of the runs, for times that noise can only add to; zero of none.
    pub fn minimum(runs: impl IntoIterator<Item = f64>) -> Self {
        let runs = sorted(runs);
        Self { value: quantile(&runs, 0.0), ..Self::spread(&runs) }
    }

    /// Of a number that was measured once, or computed.
    pub fn single(value: f64) -> Self {
        Self { value, low: value, high: value, runs: 1 }
    }

    fn spread(runs: &[f64]) -> Self {
        Self { value: 0.0, low: quantile(runs, 0.25), high: quantile(runs, 0.75), runs: runs.len() }
    }
}

fn sorted(runs: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut runs: Vec<f64> = runs.into_iter().collect();
    runs.sort_unstable_by(f64::total_cmp);
    runs
}

/// The value below which this part of the sorted runs lies, taken between two of them where it must be.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = part.clamp(0.0, 1.0) * last as f64;
    let below = sorted[at.floor() as usize];
    below + (sorted[at.ceil() as usize] - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let cases: [(&[f64], Summary, f64); 4] = [
            (&[], Summary { value: 0.0, low: 0.0, high: 0.0, runs: 0 }, 0.0),
            (&[3.0], Summary { value: 3.0, low: 3.0, high: 3.0, runs: 1 }, 3.0),
            (&[4.0, 2.0], Summary { value: 3.0, low: 2.5, high: 3.5, runs: 2 }, 2.0),
            (&[5.0, 1.0, 3.0, 2.0, 4.0], Summary { value: 3.0, low: 2.0, high: 4.0, runs: 5 }, 1.0),
        ];
        for (runs, median, minimum) in cases {
            assert_eq!(Summary::median(runs.iter().copied()), median);
            assert_eq!(Summary::minimum(runs.iter().copied()).value, minimum);
        }
    }
}
