//! `cargo xtask lint`: format, clippy, retired words, and the length of files.

mod length;
mod retired;
mod tree;
mod words;

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{build::WORKSPACE, workspace};

#[derive(Args)]
pub(crate) struct LintArgs {
    /// Only this check; may be given more than once.
    #[arg(long, value_enum)]
    only: Vec<Check>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Check {
    /// `cargo fmt --check`.
    Fmt,
    /// `cargo clippy`, with warnings as errors; of the BPF programs as far as the host's compiler sees them.
    Clippy,
    /// Words that the project retired, with their replacements.
    Words,
    /// Rust files of more than 400 lines.
    Length,
}

impl Check {
    /// Returns the findings, one line each.
    fn run(self) -> Result<Vec<String>> {
        match self {
            Self::Fmt => {
                workspace::run(workspace::cargo().args(["fmt", "--all", "--check"])).map(|()| Vec::new())
            }
            Self::Clippy => {
                clippy().iter_mut().try_for_each(workspace::run)?;
                Ok(Vec::new())
            }
            Self::Words => words::check(workspace::root()),
            Self::Length => length::check(workspace::root()),
        }
    }
}

/// `cargo clippy` of the workspace, and of both variants of the BPF programs. Those for the host: BPF's compiler has no clippy. Without
/// `std` there is no unwinding.
pub(crate) fn clippy() -> [Command; 3] {
    let programs = ["--package", "proxy-ebpf", "--config", "profile.dev.panic='abort'"];
    [
        [&WORKSPACE[..], &["--all-targets"]].concat(),
        programs.to_vec(),
        [&programs[..], &["--features", "kernel-log"]].concat(),
    ]
    .map(|select| {
        let mut command = workspace::cargo();
        command.arg("clippy").args(select).args(["--", "-D", "warnings"]);
        command
    })
}

pub(crate) fn main(args: &LintArgs) -> Result<()> {
    let checks = if args.only.is_empty() { Check::value_variants() } else { &args.only };
    let mut failed = Vec::new();
    for check in checks {
        let findings = check.run().unwrap_or_else(|error| vec![format!("{error:#}")]);
        for finding in &findings {
            println!("{finding}");
        }
        if !findings.is_empty() {
            failed.push(format!("{check:?}").to_lowercase());
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}
