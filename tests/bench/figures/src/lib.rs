//! Results of benchmarks, in one form for all of them: the programs that measure write it, `cargo xtask bench` makes
//! tables, plots and comparisons of it.

mod figure;
mod place;

pub use figure::{Better, Figure, Statistic, Summary, Unit, quantile};
pub use place::{Place, pin};

use serde::{Deserialize, Serialize};

/// Results of one benchmark.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Its name: `packet`, `traffic`, `sync` or `memory`.
    pub bench: String,
    /// How it measures, as Markdown paragraphs for the document.
    pub method: String,
    /// In the order in which the document shows them.
    pub figures: Vec<Figure>,
    /// The target.
    pub targets: Vec<Target>,
}

/// A target beside its measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its subject, like "established DNAT, XDP, IPv4".
    pub what: String,
    /// The unit of limit and measured value.
    pub unit: Unit,
    /// Whether the limit is the most or the least.
    pub better: Better,
    /// The limit, in `unit`.
    pub limit: f64,
    /// The result, in `unit`.
    pub measured: f64,
    /// The measured reason why it is out of reach here and how it could be reached; shown when it was missed.
    pub reason: Option<String>,
}

impl Target {
    /// Whether it was reached.
    pub fn is_met(&self) -> bool {
        match self.better {
            Better::Less => self.measured <= self.limit,
            Better::More => self.measured >= self.limit,
        }
    }
}
