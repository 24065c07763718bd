//! Builds the programs, and the agent with the programs inside.

mod guard;
mod stack;
mod strip;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{
    setup::{self, BPF_TARGET, Toolchain},
    workspace::{cargo, host_triple, line, run, say, target_dir, write_if_changed},
};

/// The environment variable that makes a warning of the guard's error.
const ALLOW_MEMORY_CALLS: &str = "XTASK_ALLOW_MEMORY_CALLS";

/// Arguments of `build`.
#[derive(Args)]
pub(crate) struct BuildArgs {
    /// Optimised, and linked statically: the file that images and releases hold.
    #[arg(long)]
    release: bool,
    /// Only the programs in the kernel, for the agent's build script.
    #[arg(long, conflicts_with = "release")]
    programs: bool,
    /// Show the number of instructions of each program.
    #[arg(short, long)]
    verbose: bool,
}

/// `cargo xtask build`.
pub(crate) fn main(args: &BuildArgs) -> Result<()> {
    if args.programs {
        return programs(args.verbose);
    }
    let agent = if args.release { release(args.verbose)? } else { debug(args.verbose)? };
    say(format!("built {}", agent.display()));
    Ok(())
}

/// Builds the agent without optimisation and returns the binary's path.
fn debug(verbose: bool) -> Result<PathBuf> {
    programs(verbose)?;
    run(cargo().args(["build", "--package", "proxy-agent"]))?;
    Ok(target_dir().join("debug/proxy-agent"))
}

/// Builds the agent with the release profile of shipped binaries and returns the binary's path.
pub(crate) fn release(verbose: bool) -> Result<PathBuf> {
    programs(verbose)?;
    let built = static_agent(&["--release"])?.join("release/proxy-agent");
    let agent = target_dir().join("release/proxy-agent");
    let content = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // A running agent keeps the old file: a text file in use cannot be written.
    if fs::read(&agent).map_or(true, |old| old != content) {
        let new = agent.with_extension("new");
        fs::create_dir_all(target_dir().join("release"))?;
        fs::copy(&built, &new).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &agent)?;
    }
    Ok(agent)
}

/// Builds the agent as for release but without the optimisation, which takes minutes, and returns the binary's path.
pub(crate) fn unoptimised_release() -> Result<PathBuf> {
    let profile = ["--config", "profile.dev.strip='debuginfo'"];
    Ok(static_agent(&profile)?.join("debug/proxy-agent"))
}

/// Builds the agent so that it needs no shared library, and returns the directory of the target.
fn static_agent(profile: &[&str]) -> Result<PathBuf> {
    let triple = host_triple()?;
    // By naming the target, the flags are kept off build scripts and procedural macros, which must stay dynamic.
    run(cargo()
        .args(["build", "--package", "proxy-agent", "--target", &triple])
        .args(profile)
        .env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(target_dir().join(triple))
}

/// Selects the packages that are built and tested with the host's compiler. Always selected together: with fewer
/// packages cargo gives dependencies fewer features, and so builds them once more.
pub(crate) const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", "proxy-ebpf"];

/// Executables by name of the target.
pub(crate) type Executables = BTreeMap<String, PathBuf>;

/// Builds all that tests run, and returns the binaries and the integration tests. Not optimised: quicker in sum.
pub(crate) fn for_tests() -> Result<Executables> {
    executables(&["--all-targets".to_owned()])
}

/// The same for these integration tests alone.
pub(crate) fn for_some_tests(names: &[&str]) -> Result<Executables> {
    let tests = names.iter().flat_map(|name| ["--test".to_owned(), (*name).to_owned()]);
    executables(&["--bins".to_owned()].into_iter().chain(tests).collect::<Vec<_>>())
}

fn executables(select: &[String]) -> Result<Executables> {
    programs(false)?;
    let mut build = cargo();
    build.arg("build").args(WORKSPACE).args(select).arg("--message-format=json-render-diagnostics");
    let output = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{} failed: {}", line(&build), output.status);
    }
    let mut executables = Executables::new();
    for message in output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Artifact = serde_json::from_slice(message).context("cargo's messages have changed")?;
        // A binary's unit tests have its name too.
        if let Artifact { executable: Some(path), target: Some(target), profile: Some(profile) } = message
            && profile.test == (target.kind == ["test"])
        {
            executables.insert(target.name, path);
        }
    }
    Ok(executables)
}

/// The part used here of a message of cargo's (The Cargo Book, "External tools"). Others lack all of it.
#[derive(Deserialize)]
struct Artifact {
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds both variants of the programs and puts them where the agent's build script looks.
pub(crate) fn programs(verbose: bool) -> Result<()> {
    let (toolchain, _) = setup::bpf()?;
    let plain = compile(&toolchain, &[])?;
    // The log records of the other variant are built by memcpy; that variant is not loaded where speed matters.
    let calls = guard::memory_calls(&plain)?;
    if !calls.is_empty() {
        let message = format!(
            "the programs must not call memory functions, they are slow and verify badly:\n  {}",
            calls.join("\n  ")
        );
        // For work on the programs, where a slow one is better than none.
        if std::env::var_os(ALLOW_MEMORY_CALLS).is_none() {
            bail!("{message}\n({ALLOW_MEMORY_CALLS}=1 lets it pass)");
        }
        say(format!("warning: {message}"));
    }
    if verbose {
        for (program, instructions) in guard::program_sizes(&plain)? {
            say(format!("{instructions:6} instructions in {program}"));
        }
    }
    let logging = compile(&toolchain, &["--features", "kernel-log"])?;
    let deep =
        [&plain, &logging].into_iter().map(|elf| stack::too_deep(elf)).collect::<Result<Vec<_>>>()?.concat();
    if !deep.is_empty() {
        bail!(
            "calls take more than 512 bytes of stack, which kernels up to 6.2 refuse:\n  {}",
            deep.join("\n  ")
        );
    }
    let dir = target_dir().join("bpf");
    let (plain, logging) = (strip::debug_information(&plain)?, strip::debug_information(&logging)?);
    write_if_changed(&dir.join("proxy-agent.bpf.o"), &strip::lines(&plain)?)?;
    write_if_changed(&dir.join("proxy-agent-lines.bpf.o"), &plain)?;
    write_if_changed(&dir.join("proxy-agent-log.bpf.o"), &logging)?;
    Ok(())
}

fn compile(toolchain: &Toolchain, features: &[&str]) -> Result<Vec<u8>> {
    let dir = target_dir().join("bpf").join("build");
    run(toolchain
        .cargo_build()
        .args(["--package", "proxy-ebpf", "--profile", "bpf"])
        .args(features)
        .env("CARGO_TARGET_DIR", &dir)
        // BTF comes from debug information. v3 instructions (32-bit arithmetic) are known to all kernels we support.
        // By default bpf-linker has every copy, however short, made by a call to memcpy.
        .env(
            "RUSTFLAGS",
            format!(
                "-C debuginfo=2 -C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order -C target-cpu=v3{}",
                deny_warnings()
            ),
        ))
    .context("cannot build the programs")?;
    read(&dir.join(BPF_TARGET).join("bpf/proxy-ebpf"))
}

/// In continuous integration warnings in the programs are errors: `cargo xtask lint` sees them as the host's compiler does, which is not all.
fn deny_warnings() -> &'static str {
    if std::env::var_os("CI").is_some() { " -D warnings" } else { "" }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
