//! A measured number, with its spread.

use serde::{Deserialize, Serialize};

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    /// A time.
    Nanoseconds,
    /// A time.
    Microseconds,
    /// A time.
    Milliseconds,
    /// A time.
    Seconds,
    /// Operations, connections or packets in a second.
    PerSecond,
    /// Transferred data.
    MegabitsPerSecond,
    /// Memory.
    Mebibytes,
    /// One number over another, like a rate over that of the baseline.
    Ratio,
    /// A part of a whole.
    Percent,
    /// A count of anything else, like system calls.
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
    /// The unit of the value.
    pub unit: Unit,
    /// Which way is better.
    pub better: Better,
    /// The number.
    pub value: Summary,
}

/// Which statistic of the runs a [`Summary`] has as its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Statistic {
    /// Their median, which lies between their quartiles.
    #[default]
    Median,
    /// The smallest, or the difference of the smallest times with and without the program, because noise only adds. It may lie
    /// outside the quartiles.
    Minimum,
    /// All runs as one: operations over time, or the reverse. It may lie outside the quartiles.
    Overall,
}

impl Statistic {
    fn is_median(&self) -> bool {
        *self == Self::Median
    }
}

/// A number from several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The number that stands for the runs.
    pub value: f64,
    /// The lower quartile of the runs.
    pub low: f64,
    /// The upper quartile of the runs.
    pub high: f64,
    /// How many runs there were.
    pub runs: usize,
    /// The statistic that `value` is. The quartiles are its own only if it is the median.
    #[serde(default, skip_serializing_if = "Statistic::is_median")]
    pub statistic: Statistic,
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
        Self { value: quantile(&runs, 0.0), statistic: Statistic::Minimum, ..Self::spread(&runs) }
    }

    /// The summary of a number that was measured once, or computed.
    pub fn single(value: f64) -> Self {
        Self { value, low: value, high: value, runs: 1, statistic: Statistic::Median }
    }

    fn spread(runs: &[f64]) -> Self {
        let (low, high) = (quantile(runs, 0.25), quantile(runs, 0.75));
        Self { value: 0.0, low, high, runs: runs.len(), statistic: Statistic::Median }
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
        let of = |value, low, high, runs| Summary { value, low, high, runs, statistic: Statistic::Median };
        let cases: [(&[f64], Summary, f64); 4] = [
            (&[], of(0.0, 0.0, 0.0, 0), 0.0),
            (&[3.0], of(3.0, 3.0, 3.0, 1), 3.0),
            (&[4.0, 2.0], of(3.0, 2.5, 3.5, 2), 2.0),
            (&[5.0, 1.0, 3.0, 2.0, 4.0], of(3.0, 2.0, 4.0, 5), 1.0),
        ];
        for (runs, median, minimum) in cases {
            assert_eq!(Summary::median(runs.iter().copied()), median);
            let smallest = Summary { value: minimum, statistic: Statistic::Minimum, ..median };
            assert_eq!(Summary::minimum(runs.iter().copied()), smallest);
        }
    }
}
