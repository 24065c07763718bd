//! Services under load, beside no service proxy at all and kube-proxy's rules. `cargo xtask bench traffic` runs it.
#![forbid(unsafe_code)]

mod echo;
mod fixture;
mod flood;
mod flood_report;
mod forward;
mod load;
mod measure;
mod method;
mod reasons;
mod report;
mod serve;
mod services;
mod setup;
mod sockets;
mod sockets_report;
mod sustained;
mod sustained_report;
mod targets;
mod wire;

use std::{fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use proxy_figures::{Part, pin};

use forward::Rates;
use measure::{Path, Plan, Samples};
use method::Method;
use setup::{Setup, Variant};
use wire::Kind;

/// Measures services under load.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 21)]
    runs: usize,
    /// Milliseconds of each slice of load.
    #[arg(long, default_value_t = 50)]
    slice: u64,
    /// Numbers of services.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000])]
    services: Vec<usize>,
    /// Only these ways to serve, and direct.
    #[arg(long, value_enum, value_delimiter = ',')]
    variants: Vec<Variant>,
    /// Only these kinds of load.
    #[arg(long, value_enum, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Only these paths.
    #[arg(long, value_enum, value_delimiter = ',')]
    paths: Vec<Path>,
    /// How long sustained load lasts with one client and one endpoint; other cases last a sixth of that, floods half.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Section>,
    /// Write the numbers here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The parts that can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Slices of load, all ways to serve in turn.
    Slices,
    /// How many packets a node forwards.
    Forwarding,
    /// New connections for the time of `--seconds`.
    Sustained,
    /// Clients during floods of forged SYNs.
    Flood,
    /// What socket hooks add to system calls.
    Sockets,
}

/// The benchmark's own subcommands in other namespaces.
#[derive(Subcommand)]
enum Command {
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        cpu: usize,
        addresses: Vec<Ipv4Addr>,
    },
    #[command(hide = true)]
    Echo { addresses: Vec<Ipv4Addr> },
    #[command(hide = true)]
    Load {
        #[arg(long)]
        cpu: usize,
    },
    #[command(hide = true)]
    Sockets {
        #[arg(long)]
        cpu: usize,
    },
}

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        None => bench(args),
        Some(Command::Serve { cpu, addresses }) => {
            pin(cpu)?;
            Ok(serve::serve(&addresses)?)
        }
        Some(Command::Echo { addresses }) => Ok(echo::serve(&addresses)?),
        Some(Command::Load { cpu }) => {
            pin(cpu)?;
            Ok(load::follow_orders()?)
        }
        Some(Command::Sockets { cpu }) => {
            pin(cpu)?;
            Ok(sockets::follow_orders()?)
        }
    }
}

fn bench(args: Args) -> Result<()> {
    let sections = chosen(args.only.clone());
    let mut part = if sections.iter().any(|section| matches!(section, Section::Slices | Section::Forwarding))
    {
        compare_variants(&args, &sections)?
    } else {
        Part {
            bench: report::NAME.to_owned(),
            method: String::new(),
            figures: Vec::new(),
            targets: Vec::new(),
        }
    };
    let time = Duration::from_secs(args.seconds);
    if sections.contains(&Section::Sustained) {
        sustained_report::add(&mut part, &sustained::measure(time)?, time);
    }
    if sections.contains(&Section::Flood) {
        flood_report::add(&mut part, &flood::measure(time)?, time);
    }
    if sections.contains(&Section::Sockets) {
        let (rounds, slice) = (args.runs.max(1), Duration::from_millis(args.slice));
        let cpu = std::thread::available_parallelism()?.get() - 1;
        sockets_report::add(&mut part, &sockets::measure(rounds, slice, cpu)?, rounds, slice);
    }
    report::group(&mut part.figures);
    print!("{}", report::tables(&part));
    if let Some(path) = args.json {
        let json = serde_json::to_string_pretty(&part)? + "\n";
        fs::write(&path, json).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Slices and forwarding.
fn compare_variants(args: &Args, sections: &[Section]) -> Result<Part> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut variants = chosen(args.variants.clone());
    variants.retain(|variant| *variant != Variant::Direct);
    variants.insert(0, Variant::Direct);
    let setups = variants.into_iter().map(|variant| Setup::new(variant, cpus - 1));
    let mut setups = setups.collect::<Result<Vec<_>>>()?;
    let plan = Plan {
        kinds: chosen(args.kinds.clone()),
        paths: chosen(args.paths.clone()),
        services: args.services.clone(),
        rounds: args.runs.max(1),
        slice: Duration::from_millis(args.slice),
    };
    let has = |section| sections.contains(&section);
    let rates = if has(Section::Forwarding) { forward(&mut setups, &plan, cpus - 1)? } else { Rates::new() };
    let samples = if has(Section::Slices) { measure::measure(&mut setups, &plan)? } else { Samples::new() };
    let iptables = setups.iter().find_map(|setup| setup.iptables());
    Ok(report::part(&samples, &rates, &Method { plan: &plan, iptables }))
}

/// With the first number of services. XDP needs a separate cluster.
fn forward(setups: &mut [Setup], plan: &Plan, cpu: usize) -> Result<Rates> {
    let services = services::services(plan.services.first().copied().unwrap_or_default());
    let mut xdp = Setup::new(Variant::Xdp, cpu)?;
    for setup in setups.iter_mut().chain([&mut xdp]) {
        setup.set_services(&services)?;
    }
    // Pods have no part in it.
    let others = |setup: &&Setup| !matches!(setup.variant, Variant::Again | Variant::Tc);
    let all: Vec<_> = setups.iter().filter(others).chain([&xdp]).collect();
    forward::forward(&all, cpu, plan.rounds, 2 * plan.slice)
}

/// All there are, unless some are named.
fn chosen<T: ValueEnum + Clone>(named: Vec<T>) -> Vec<T> {
    if named.is_empty() { T::value_variants().to_vec() } else { named }
}
