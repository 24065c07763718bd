//! The documentation of the code, by rustdoc.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{
    build::WORKSPACE,
    workspace::{cargo, run, say, target_dir},
};

/// Arguments of `doc`.
#[derive(Args)]
pub(crate) struct DocArgs {
    /// Open it in a browser.
    #[arg(long)]
    open: bool,
}

/// `cargo xtask doc`: all crates but that of the programs, which builds for the BPF target only. A warning is an error.
pub(crate) fn main(args: &DocArgs) -> Result<()> {
    let mut command = rustdoc();
    if args.open {
        command.arg("--open");
    }
    run(&mut command)?;
    say(format!("wrote {}", target_dir().join("doc").display()));
    Ok(())
}

/// `cargo doc` with warnings as errors.
pub(crate) fn rustdoc() -> Command {
    let mut command = cargo();
    // With private items, links to them lead somewhere.
    command.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private-intra-doc-links");
    command.arg("doc").args(WORKSPACE).args(["--no-deps", "--document-private-items"]);
    command
}
