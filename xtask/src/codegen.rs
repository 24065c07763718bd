//! Writes generated files: the kustomize base and components, the document of the benchmarks, tables in documents.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use similar::TextDiff;

use crate::{
    bench::{self, Files},
    build::WORKSPACE,
    workspace::{cargo, root, run, say, write_if_changed},
};

/// With it, tests write the documents that they compare otherwise.
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
    // All, so that one run shows everything that is stale.
    let results = [manifests(args.check), benchmarks(args.check), documents(args.check)];
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
    let files = proxy_chart::files(&deploy)?;
    let obsolete = proxy_chart::obsolete(&deploy, &files)?;
    renew("manifests", &files, &obsolete, check)
}

/// The document of the benchmarks and its plots, from the numbers that were measured last.
fn benchmarks(check: bool) -> Result<()> {
    let (files, obsolete) = bench::generated()?;
    renew("benchmarks", &files, &obsolete, check)
}

/// Writes files and removes obsolete ones, or prints what would change.
///
/// # Errors
/// When a file cannot be written; with `check`, when one is stale.
pub(crate) fn renew(what: &str, files: &Files, obsolete: &[PathBuf], check: bool) -> Result<()> {
    let mut stale = obsolete.len();
    for path in obsolete {
        say(format!("remove {}", path.display()));
        if !check {
            fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
    }
    for (path, text) in files {
        if !check {
            if write_if_changed(path, text.as_bytes())? {
                stale += 1;
                say(format!("write {}", path.display()));
            }
            continue;
        }
        let stands = fs::read_to_string(path).unwrap_or_default();
        if stands != *text {
            stale += 1;
            let name = path.display().to_string();
            println!("{}", TextDiff::from_lines(&stands, text).unified_diff().header(&name, "generated"));
        }
    }
    if check && stale > 0 {
        bail!("{what}: {stale} files are stale: run `cargo xtask codegen`");
    }
    say(format!("{what}: {} files, {stale} changed", files.len()));
    Ok(())
}

/// Documents, wholly or in parts: tests of `tests/tests/unit/generated` compare them, or write them.
fn documents(check: bool) -> Result<()> {
    let mut command = cargo();
    command.arg("test").args(WORKSPACE).args(["--quiet", "--test", "unit", "--", "generated::"]);
    if check {
        command.env_remove(BLESS);
    } else {
        command.env(BLESS, "1");
    }
    run(&mut command).context("documents")
}
