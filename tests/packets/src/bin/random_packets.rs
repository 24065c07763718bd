//! Random packets through the programs in the kernel and through the core, and some that are none of their business: run by
//! `cargo xtask nightly`.
#![forbid(unsafe_code)]

use std::{process::ExitCode, thread};

use anyhow::{Result, anyhow};
use clap::Parser;
use proxy_common::{V4, V6};
use proxy_packets::{
    PacketFamily,
    random::{Passed, Plan, bystanders, compare},
};

/// Compares the programs in the kernel with the core, on random packets. Needs root.
#[derive(Parser)]
struct Args {
    /// Packets of each family, half of them with everything switched on; and as many of no Service.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    packets: usize,
    /// Where to begin: the number that a failure names brings it back.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Print how often each program gave each verdict.
    #[arg(long)]
    verdicts: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Args { packets, seed, verdicts } = Args::parse();
    println!("{packets} packets of each family from seed {seed} on");
    let plan = Plan { packets, seed };
    // A node lives in the namespace of the thread that made it; there is a CPU for each family.
    let v4 = thread::spawn(move || family::<V4>(plan, verdicts));
    let v6 = thread::spawn(move || family::<V6>(plan, verdicts));
    let results = [v4, v6].map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
    results.into_iter().collect()
}

fn family<F: PacketFamily>(plan: Plan, verdicts: bool) -> Result<()> {
    let Passed { packets, runs, flows, took } = bystanders::<F>(plan)?;
    println!(
        "IPv{}: {packets} packets of no frontend and no flow left as they were, {runs} runs of a program beside {flows} flows, \
         in {:.1} s",
        F::NUMBER,
        took.as_secs_f64(),
    );
    let plan = Plan { packets: plan.packets / 2, ..plan };
    for everything in [false, true] {
        let report = compare::<F>(plan, everything)?;
        let rate = report.steps as f64 / report.took.as_secs_f64();
        println!(
            "IPv{}{}: {} steps in {:.1} s, {rate:.0} a second",
            F::NUMBER,
            if everything { ", everything switched on" } else { "" },
            report.steps,
            report.took.as_secs_f64(),
        );
        for difference in report.unrepeated {
            println!("    did not happen again: {difference}");
        }
        for (met, times) in report.met.into_iter().filter(|_| verdicts) {
            println!("    {times:9} {met}");
        }
    }
    Ok(())
}
