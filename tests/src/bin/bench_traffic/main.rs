//! Services under load, beside no service proxy at all and kube-proxy's rules. `cargo xtask bench traffic` runs it.

mod forward;
mod load;
mod measure;
mod method;
mod reasons;
mod report;
mod serve;
mod services;
mod stand;
mod targets;
mod wire;

use std::{fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand, ValueEnum};
use proxy_tests::bench::pin;

use forward::Rates;
use measure::{Path, Plan, Samples};
use method::Method;
use stand::{Stand, Variant};
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
    /// Leave out how many packets a node forwards.
    #[arg(long)]
    no_forwarding: bool,
    /// Measure only that.
    #[arg(long, conflicts_with = "no_forwarding")]
    only_forwarding: bool,
    /// Write the numbers here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the benchmark runs of itself in other namespaces.
#[derive(Subcommand)]
enum Command {
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        cpu: usize,
        addresses: Vec<Ipv4Addr>,
    },
    #[command(hide = true)]
    Load {
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
        Some(Command::Load { cpu }) => {
            pin(cpu)?;
            Ok(load::follow_orders()?)
        }
    }
}

fn bench(args: Args) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut variants = chosen(args.variants);
    variants.retain(|variant| *variant != Variant::Direct);
    variants.insert(0, Variant::Direct);
    let stands = variants.into_iter().map(|variant| Stand::new(variant, cpus - 1));
    let mut stands = stands.collect::<Result<Vec<_>>>()?;
    let plan = Plan {
        kinds: chosen(args.kinds),
        paths: chosen(args.paths),
        services: args.services,
        rounds: args.runs.max(1),
        slice: Duration::from_millis(args.slice),
    };
    let rates = if args.no_forwarding { Rates::new() } else { forward(&mut stands, &plan, cpus - 1)? };
    let samples = if args.only_forwarding { Samples::new() } else { measure::measure(&mut stands, &plan)? };
    let iptables = stands.iter().find_map(|stand| stand.iptables());
    let part = report::part(&samples, &rates, &Method { plan: &plan, iptables });
    print!("{}", report::tables(&part));
    if let Some(path) = args.json {
        let json = serde_json::to_string_pretty(&part)? + "\n";
        fs::write(&path, json).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// With the first number of services. XDP needs a cluster of its own.
fn forward(stands: &mut [Stand], plan: &Plan, cpu: usize) -> Result<Rates> {
    let services = services::services(plan.services.first().copied().unwrap_or_default());
    let mut xdp = Stand::new(Variant::Xdp, cpu)?;
    for stand in stands.iter_mut().chain([&mut xdp]) {
        stand.set_services(&services)?;
    }
    // Pods have no part in it.
    let others = |stand: &&Stand| !matches!(stand.variant, Variant::Again | Variant::Tc);
    let all: Vec<_> = stands.iter().filter(others).chain([&xdp]).collect();
    forward::forward(&all, cpu, plan.rounds, 2 * plan.slice)
}

/// All there are, unless some are named.
fn chosen<T: ValueEnum + Clone>(named: Vec<T>) -> Vec<T> {
    if named.is_empty() { T::value_variants().to_vec() } else { named }
}
