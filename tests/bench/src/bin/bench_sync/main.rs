//! How fast the agent's maps follow the API server, and how much memory it takes. `cargo xtask bench sync` and `memory` run it.
//!
//! * [`objects`]: the objects.
//! * [`api`]: the API server.
//! * [`fixture`]: the node and the agent.
//! * [`maps`]: the resulting entries of the maps.
//! * [`cluster_objects`]: all of that together.
//! * [`changes`], [`calls`]: the measurements besides starts.
//! * [`sync`], [`memory`]: the benchmarks.

mod api;
mod calls;
mod changes;
mod cluster_objects;
mod fixture;
mod maps;
mod memory;
mod objects;
mod report;
mod sync;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

use objects::Size;

/// Measures the agent (`PROXY_AGENT_BIN`, or the newest one built) with an API server.
#[derive(Parser)]
struct Args {
    /// The measurement.
    what: What,
    /// Write the numbers here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often everything is measured.
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Services and endpoints of each.
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = Size::parse,
          default_value = "10x10,1000x10,10000x10,5000x50")]
    sizes: Vec<Size>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Sync,
    Memory,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runs = args.runs.max(1);
    let part = match args.what {
        What::Sync => sync::run(runs, &args.sizes)?,
        What::Memory => memory::run(runs, &args.sizes)?,
    };
    for figure in &part.figures {
        let value = figure.value;
        println!(
            "{} | {} | {}: {:.3} ({:.3} to {:.3}, {} runs) {:?}",
            figure.table,
            figure.row,
            figure.column,
            value.value,
            value.low,
            value.high,
            value.runs,
            figure.unit
        );
    }
    for target in &part.targets {
        let verdict = if target.is_met() { "met" } else { "MISSED" };
        println!(
            "target {}: {:.3} of {:.3} {:?}: {verdict}",
            target.what, target.measured, target.limit, target.unit
        );
    }
    if let Some(path) = args.json {
        let json = serde_json::to_string_pretty(&part)? + "\n";
        fs::write(&path, json).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
