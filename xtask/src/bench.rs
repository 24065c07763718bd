//! Measurements. The programs that measure are in `tests`; here they are built as they should be, and run.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::{
    build,
    workspace::{cargo, is_root, root, run, say, target_dir},
};

/// Arguments of `bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Nanoseconds per packet of each program, against an empty one. Writes docs/benchmarks.md.
    Packet {
        /// Write the numbers here, too.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// How often all cases are measured.
        #[arg(long, value_name = "N", default_value_t = 21)]
        runs: u32,
    },
}

/// `cargo xtask bench`.
pub(crate) fn main(args: &BenchArgs) -> Result<()> {
    let What::Packet { json, runs } = &args.what;
    if !is_root() {
        bail!("measuring loads BPF programs into the kernel: run it as root");
    }
    build::programs(false)?;
    // A package alone, so that the agent is not built for it.
    run(cargo().args(["build", "--quiet", "--release", "--package", "proxy-tests"]).args([
        "--features",
        "packets",
        "--bin",
        "bench_packet",
    ]))?;
    let document = root().join("docs/benchmarks.md");
    let mut bench = std::process::Command::new(target_dir().join("release/bench_packet"));
    bench.env("PROXY_AGENT_BPF_DIR", target_dir().join("bpf"));
    bench.args(["--runs", &runs.to_string(), "--document"]).arg(&document);
    if let Some(json) = json {
        bench.arg("--json").arg(json);
    }
    run(&mut bench)?;
    say(format!("wrote {}", document.display()));
    Ok(())
}
