//! Builds and runs the programs that measure.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use proxy_figures::{Part, Place};

use super::results::Measured;
use crate::{
    build, setup, test,
    workspace::{cargo, output, root, run, target_dir},
};

/// The benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bench {
    Packet,
    Traffic,
    Sync,
    Memory,
}

impl Bench {
    /// In the order of the document.
    pub(super) const ALL: [Self; 4] = [Self::Packet, Self::Traffic, Self::Sync, Self::Memory];

    /// Its name, on the command line and in results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Packet => "packet",
            Self::Traffic => "traffic",
            Self::Sync => "sync",
            Self::Memory => "memory",
        }
    }

    /// The program that measures, and the part to measure if it has several.
    fn program(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Packet => ("bench_packet", None),
            Self::Traffic => ("bench_traffic", None),
            Self::Sync | Self::Memory => ("bench_sync", Some(self.name())),
        }
    }

    /// Whether it runs agents. Else the programs are enough.
    fn needs_agent(self) -> bool {
        self != Self::Packet
    }
}

/// Options of the benchmark programs besides the output path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options<'a> {
    /// How often everything is measured.
    pub(super) runs: Option<u32>,
    /// How long sustained load of `traffic` lasts.
    pub(super) seconds: Option<u32>,
    /// Only these parts of `traffic`.
    pub(super) only: &'a [String],
}

impl Options<'_> {
    /// As the benchmark's program takes them.
    fn args(&self, bench: Bench) -> Vec<String> {
        let mut args = Vec::new();
        if let Some(runs) = self.runs {
            args.extend(["--runs".to_owned(), runs.to_string()]);
        }
        if bench == Bench::Traffic {
            if let Some(seconds) = self.seconds {
                args.extend(["--seconds".to_owned(), seconds.to_string()]);
            }
            if !self.only.is_empty() {
                args.extend(["--only".to_owned(), self.only.join(",")]);
            }
        }
        args
    }
}

/// Everything is built, optimised.
pub(super) struct Built {
    /// The agent, if it is needed.
    agent: Option<PathBuf>,
}

/// Builds the programs for these benchmarks.
pub(super) fn build(benches: &[Bench]) -> Result<Built> {
    let agent = if benches.iter().any(|bench| bench.needs_agent()) {
        setup::tests()?;
        test::mount_bpffs()?;
        Some(build::release(false)?)
    } else {
        build::programs(false)?;
        None
    };
    let mut bins: Vec<_> = benches.iter().map(|bench| bench.program().0).collect();
    if agent.is_some() {
        bins.extend(["peer", "apiserver"]);
    }
    // These packages alone, so that the agent is not built for it once more; and always the same ones, for the same features.
    let mut build = cargo();
    build.args(["build", "--quiet", "--release"]);
    for package in ["proxy-bench", "proxy-harness", "proxy-apiserver"] {
        build.args(["--package", package]);
    }
    for bin in bins {
        build.args(["--bin", bin]);
    }
    run(&mut build)?;
    Ok(Built { agent })
}

impl Built {
    /// Runs a benchmark; its own numbers go into this folder.
    pub(super) fn run(&self, bench: Bench, options: Options<'_>, folder: &Path) -> Result<Measured> {
        let (program, what) = bench.program();
        let json = folder.join(format!("{}.part.json", bench.name()));
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let release = target_dir().join("release");
        let mut command = Command::new(release.join(program));
        command.args(what).arg("--json").arg(&json).args(options.args(bench));
        command.env("PROXY_AGENT_BPF_DIR", target_dir().join("bpf"));
        command.env("PROXY_PEER_BIN", release.join("peer"));
        if let Some(agent) = &self.agent {
            command.env("PROXY_AGENT_BIN", agent);
        }
        run(&mut command)?;
        let text = fs::read(&json).with_context(|| format!("cannot read {}", json.display()))?;
        let part: Part = serde_json::from_slice(&text).with_context(|| json.display().to_string())?;
        fs::remove_file(&json)?;
        Ok(Measured { place: Place::here()?, revision: revision(), part })
    }
}

/// The revision, and whether there were changes beside it.
fn revision() -> String {
    let git = output(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root()));
    git.map_or_else(|_| "unknown".to_owned(), |text| text.trim().replace("-dirty", " with changes"))
}
