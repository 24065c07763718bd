//! Nanoseconds per packet of each program, by `BPF_PROG_TEST_RUN`. `cargo xtask bench packet` runs it.
#![forbid(unsafe_code)]

mod asm;
mod baseline_cases;
mod baselines;
mod cases;
mod fixture;
mod measure;
mod non_service;
mod ours;
mod paths;
mod report;
mod targets;
mod wrapper;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use proxy_figures::{Part, pin};

/// Measures each program on packets.
#[derive(Parser)]
struct Args {
    /// How often all cases are measured.
    #[arg(long, default_value_t = 25)]
    runs: u32,
    /// Write the numbers here, instead of the standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    pin(std::thread::available_parallelism()?.get() - 1)?;
    let part = measure(args.runs.max(1))?;
    let json = serde_json::to_string_pretty(&part)? + "\n";
    match args.json {
        Some(path) => fs::write(&path, json).with_context(|| path.display().to_string()),
        None => {
            print!("{json}");
            Ok(())
        }
    }
}

fn measure(runs: u32) -> Result<Part> {
    let mut fixture = fixture::Fixture::new()?;
    let mut cases = baseline_cases::all()?;
    cases.extend(ours::all(&mut fixture)?);
    let measured = measure::all(&cases, runs)?;
    Ok(report::part(&cases, &measured, runs))
}
