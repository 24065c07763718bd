//! Writes what is generated: the kustomize base and components, tables in documents, whole documents.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;
use proxy_tests::chart;
use similar::TextDiff;

use crate::{
    build::WORKSPACE,
    workspace::{cargo, root, run, say},
};

/// With it, tests write what else they compare.
const BLESS: &str = "PROXY_AGENT_BLESS";

/// Arguments of `codegen`.
#[derive(Args)]
pub(crate) struct CodegenArgs {
    /// Change nothing, and fail with the difference if something is stale.
    #[arg(long)]
    check: bool,
}

/// `cargo xtask codegen`.
pub(crate) fn main(args: &CodegenArgs) -> Result<()> {
    // Both, so that one run shows everything that is stale.
    let results = [manifests(args.check), documents(args.check)];
    let errors: Vec<_> =
        results.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    if !errors.is_empty() {
        bail!("{}", errors.join("; "));
    }
    Ok(())
}

/// The kustomize base and components, from the Helm chart.
fn manifests(check: bool) -> Result<()> {
    let deploy = root().join("deploy");
    let files = chart::files(&deploy)?;
    let mut stale = 0;
    for path in chart::obsolete(&deploy, &files)? {
        stale += 1;
        say(format!("remove {}", path.display()));
        if !check {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    for (path, text) in &files {
        let stands = fs::read_to_string(path).unwrap_or_default();
        if stands == *text {
            continue;
        }
        stale += 1;
        if check {
            let name = path.display().to_string();
            println!("{}", TextDiff::from_lines(&stands, text).unified_diff().header(&name, "generated"));
        } else {
            say(format!("write {}", path.display()));
            fs::write(path, text).with_context(|| path.display().to_string())?;
        }
    }
    if check && stale > 0 {
        bail!("{stale} files of deploy/ are not what the chart renders to: run `cargo xtask codegen`");
    }
    say(format!("manifests: {} files, {stale} changed", files.len()));
    Ok(())
}

/// Documents, wholly or in parts: tests of `tests/tests/core/generated` compare them, or write them.
fn documents(check: bool) -> Result<()> {
    let mut command = cargo();
    command.arg("test").args(WORKSPACE).args(["--quiet", "--test", "core", "--", "generated::"]);
    if check {
        command.env_remove(BLESS);
    } else {
        command.env(BLESS, "1");
    }
    run(&mut command).context("documents")
}
