//! Results: measured values, the machine, and the revision.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use proxy_figures::{Part, Place};
use serde::{Deserialize, Serialize};

use super::measure::Bench;
use crate::workspace::write_if_changed;

/// Benchmarks, each at most once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Results {
    pub(super) parts: Vec<Measured>,
}

/// A benchmark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) place: Place,
    /// As git describes it.
    pub(super) revision: String,
    #[serde(flatten)]
    pub(super) part: Part,
}

impl Results {
    /// Reads them.
    pub(super) fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what `cargo xtask bench --json` writes", path.display()))
    }

    /// Writes them.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        write_if_changed(path, json.as_bytes())?;
        Ok(())
    }

    /// Adds a benchmark, or replaces its earlier results.
    pub(super) fn put(&mut self, measured: Measured) {
        self.parts.retain(|known| known.part.bench != measured.part.bench);
        self.parts.push(measured);
        let order = |name: &str| Bench::ALL.iter().position(|bench| bench.name() == name);
        self.parts.sort_by_key(|known| order(&known.part.bench));
    }

    /// The benchmark of this name.
    pub(super) fn part(&self, bench: &str) -> Option<&Measured> {
        self.parts.iter().find(|known| known.part.bench == bench)
    }
}

/// The machine in words.
pub(super) fn machine(place: &Place) -> String {
    let kind = if place.is_virtual { ", virtual machine" } else { "" };
    format!("{}, {} CPUs{kind}", place.processor, place.cpus)
}
