//! Measurements. The programs that measure are in `tests`; here they are built and run, and their results are shown,
//! compared and written into the document.

mod compare;
mod details;
mod document;
mod grid;
mod measure;
mod overview;
mod plot;
mod results;
mod scale;
mod summary;
mod terminal;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::workspace::{is_root, say, target_dir};
use compare::Comparison;
pub(crate) use document::Files;
use measure::{Bench, Options};
use results::Results;

/// Arguments of `bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nanoseconds per packet of each program, against programs that do less.
    Packet(OneArgs),
    /// Connections, requests and bytes through services in network namespaces, against none and against other proxies.
    Traffic(TrafficArgs),
    /// How long it takes from the API server into the maps, with many services.
    Sync(OneArgs),
    /// Memory of agent and maps, with many services.
    Memory(OneArgs),
    /// All of these, into docs/benchmarks.md.
    All(AllArgs),
    /// Show numbers of an earlier run.
    Report(ReportArgs),
}

#[derive(Args)]
struct MeasureArgs {
    /// How often each measurement is repeated. Default: the benchmark's own.
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    /// Write the numbers here, instead of into the target directory.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    compare: CompareArgs,
}

#[derive(Args)]
struct OneArgs {
    #[command(flatten)]
    measure: MeasureArgs,
    /// Renew this part of docs/benchmarks.md, and its page in docs/benchmarks.
    #[arg(long)]
    document: bool,
}

#[derive(Args)]
struct TrafficArgs {
    #[command(flatten)]
    one: OneArgs,
    /// How long sustained load lasts, with one client and one endpoint. Default: the benchmark's own.
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
    /// Only these parts: slices, forwarding, sustained, flood, sockets.
    #[arg(long, value_name = "PARTS", value_delimiter = ',', conflicts_with = "document")]
    only: Vec<String>,
}

#[derive(Args)]
struct AllArgs {
    #[command(flatten)]
    measure: MeasureArgs,
    /// How long sustained load lasts, with one client and one endpoint. Default: the benchmark's own.
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
}

#[derive(Args)]
struct ReportArgs {
    /// The numbers, as `--json` of the others has them.
    #[arg(long, value_name = "FILE")]
    json: PathBuf,
    #[command(flatten)]
    compare: CompareArgs,
    /// Renew these parts of docs/benchmarks.md, and their pages in docs/benchmarks.
    #[arg(long)]
    document: bool,
}

#[derive(Args)]
struct CompareArgs {
    /// Show the results that are worse than in this earlier run, which may be one of all benchmarks.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Fail if something is.
    #[arg(long, requires = "compare")]
    fail_on_regression: bool,
}

/// docs/benchmarks.md and its plots, made of the numbers that were measured last; and plots that belong to no table.
///
/// # Errors
/// When the numbers cannot be read.
pub(crate) fn generated() -> Result<(Files, Vec<PathBuf>)> {
    document::generated()
}

/// `cargo xtask bench`.
pub(crate) fn main(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Packet(args) => one(Bench::Packet, args),
        What::Traffic(TrafficArgs { one, seconds, only }) => {
            let options = Options { runs: one.measure.runs, seconds: *seconds, only };
            measure(&[Bench::Traffic], &one.measure, options, Bench::Traffic.name(), one.document)
        }
        What::Sync(args) => one(Bench::Sync, args),
        What::Memory(args) => one(Bench::Memory, args),
        What::All(AllArgs { measure: args, seconds }) => {
            let options = Options { runs: args.runs, seconds: *seconds, only: &[] };
            measure(&Bench::ALL, args, options, "all", true)
        }
        What::Report(args) => {
            let results = Results::load(&args.json)?;
            show(&results, &args.compare, args.document)
        }
    }
}

fn one(bench: Bench, args: &OneArgs) -> Result<()> {
    let options = Options { runs: args.measure.runs, ..Options::default() };
    measure(&[bench], &args.measure, options, bench.name(), args.document)
}

fn measure(
    benches: &[Bench],
    args: &MeasureArgs,
    options: Options<'_>,
    name: &str,
    in_document: bool,
) -> Result<()> {
    if !is_root() {
        bail!("measuring loads BPF programs into the kernel: run it as root");
    }
    // Rather now than after minutes of measuring.
    if let Some(earlier) = &args.compare.compare {
        Results::load(earlier)?;
    }
    let folder = target_dir().join("bench");
    let json = args.json.clone().unwrap_or_else(|| folder.join(format!("{name}.json")));
    let built = measure::build(benches)?;
    let mut results = Results::default();
    let mut failed = Vec::new();
    for bench in benches {
        say(format!("measuring: {}", bench.name()));
        match built.run(*bench, options, &folder) {
            Ok(measured) => {
                results.put(measured);
                results.save(&json)?;
            }
            // The other benchmarks may still succeed.
            Err(error) => {
                say(format!("error: {}: {error:#}", bench.name()));
                failed.push(bench.name());
            }
        }
    }
    show(&results, &args.compare, in_document && !results.parts.is_empty())?;
    if !failed.is_empty() {
        bail!("not measured: {}", failed.join(", "));
    }
    say(format!("wrote {}", json.display()));
    Ok(())
}

fn show(results: &Results, compare: &CompareArgs, in_document: bool) -> Result<()> {
    terminal::show(results);
    if in_document {
        let file = document::write(results)?;
        say(format!("wrote {}", file.display()));
    }
    let Some(earlier) = &compare.compare else { return Ok(()) };
    let comparison = compare_with(earlier, results)?;
    if compare.fail_on_regression && !comparison.regressions.is_empty() {
        bail!("{} figures are worse than in {}", comparison.regressions.len(), earlier.display());
    }
    Ok(())
}

fn compare_with(earlier: &Path, results: &Results) -> Result<Comparison> {
    let comparison = Comparison::of(&Results::load(earlier)?, results);
    terminal::show_comparison(&comparison, earlier);
    Ok(comparison)
}
