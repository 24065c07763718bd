//! Generates the kustomize base and components from the Helm chart.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;
use proxy_tests::chart;

use crate::workspace::{root, say};

/// Arguments of `deploy`.
#[derive(Args)]
pub(crate) struct DeployArgs {
    /// Change nothing, and fail if something would change.
    #[arg(long)]
    check: bool,
}

/// `cargo xtask deploy`.
pub(crate) fn main(args: &DeployArgs) -> Result<()> {
    let deploy = root().join("deploy");
    let files = chart::files(&deploy)?;
    let mut changed = 0;
    for path in chart::obsolete(&deploy, &files)? {
        changed += 1;
        say(format!("remove {}", path.display()));
        if !args.check {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    for (path, text) in &files {
        if fs::read_to_string(path).is_ok_and(|before| before == *text) {
            continue;
        }
        changed += 1;
        say(format!("write {}", path.display()));
        if !args.check {
            fs::write(path, text).with_context(|| path.display().to_string())?;
        }
    }
    if args.check && changed > 0 {
        bail!("{changed} files differ from what the chart renders to: run `cargo xtask deploy`");
    }
    say(format!("{} files, {changed} changed", files.len()));
    Ok(())
}
