//! Nanoseconds per packet of each program, by `BPF_PROG_TEST_RUN`. `cargo xtask bench packet` runs it.

mod cases;
mod report;
mod wrapper;

use std::{fs, os::fd::AsFd as _, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use proxy_tests::packets::sys::{self, Kind};

use cases::Bench;
use report::{Empty, Measured, Report, Statistics};

/// Measures each program on packets.
#[derive(Parser)]
struct Args {
    /// How often all cases are measured.
    #[arg(long, default_value_t = 21)]
    runs: u32,
    /// Packets per case and run.
    #[arg(long, default_value_t = 100_000)]
    repeat: u32,
    /// Write the numbers here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a document here.
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut cpus = CpuSet::new();
    let last = std::thread::available_parallelism()?.get() - 1;
    cpus.set(last)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    let report = measure(args.runs.max(1), args.repeat.max(1))?;
    println!("{}", report.table());
    if let Some(path) = args.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(&path, json).with_context(|| path.display().to_string())?;
    }
    if let Some(path) = args.document {
        fs::write(&path, report.document()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn measure(runs: u32, repeat: u32) -> Result<Report> {
    let bench = Bench::new()?;
    let cases = bench.cases()?;
    let kinds = [("tc", Kind::Tc), ("XDP", Kind::Xdp)];
    let empty = [wrapper::empty(Kind::Tc)?, wrapper::empty(Kind::Xdp)?];
    let frame = [0u8; 128];
    let mut alone = [Vec::new(), Vec::new()];
    let mut times = vec![(Vec::new(), Vec::new()); cases.len()];
    for _ in 0..runs {
        for ((program, (_, kind)), times) in empty.iter().zip(kinds).zip(&mut alone) {
            times.push(sys::run(program.as_fd(), kind, &frame, 0, repeat, 0, 0)?.nanoseconds);
        }
        for (case, (with, without)) in cases.iter().zip(&mut times) {
            let time = |program| -> Result<u32> {
                Ok(sys::run(program, case.kind, &case.frame, case.device, repeat, 0, 0)?.nanoseconds)
            };
            with.push(time(case.wrapper.fd())?);
            without.push(time(case.floor.fd())?);
        }
    }
    let cases = cases.iter().zip(times).map(|(case, (with, without))| {
        let (nanoseconds, floor) = (Statistics::of(with), Statistics::of(without));
        Measured {
            family: case.family,
            program: case.program,
            what: case.what,
            nanoseconds,
            floor,
            above_floor: nanoseconds.min as i64 - floor.min as i64,
        }
    });
    let empty = kinds.iter().zip(alone);
    Ok(Report {
        machine: machine()?,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        runs,
        repeat,
        empty: empty.map(|((kind, _), times)| Empty { kind, nanoseconds: Statistics::of(times) }).collect(),
        cases: cases.collect(),
    })
}

fn machine() -> Result<String> {
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let is_virtual = info.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    let kind = if is_virtual { ", virtual machine" } else { "" };
    Ok(format!("{}, {cpus} CPUs{kind}", model.map_or("unknown processor", |(_, name)| name)))
}
