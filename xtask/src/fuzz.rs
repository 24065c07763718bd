//! Fuzzing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    setup,
    workspace::{cargo, find_program, host_triple, output, root, run, say, target_dir},
};

/// The version of cargo-fuzz that is installed when there is none.
const CARGO_FUZZ: &str = "0.13.2";

/// Arguments of `fuzz`.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Targets: files of tests/fuzz/targets. Default: all, one after the other.
    targets: Vec<String>,
    /// For how long to run each.
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Default: address, if the compiler has it.
    #[arg(long, value_enum)]
    sanitizer: Option<Sanitizer>,
}

impl FuzzArgs {
    /// Every target, each for so long.
    pub(crate) fn every_target(seconds: u32) -> Self {
        Self { targets: Vec::new(), seconds, sanitizer: None }
    }
}

/// The sanitizer for memory. `parse_packet`, which reads by raw pointers, is the one that needs it.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Sanitizer {
    Address,
    None,
}

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::None => "none",
        }
    }
}

/// `cargo xtask fuzz`.
pub(crate) fn main(args: &FuzzArgs) -> Result<()> {
    let known = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !known.contains(target)) {
        bail!("target `{unknown}` does not exist; existing ones: {}", known.join(", "));
    }
    let targets = if args.targets.is_empty() { &known } else { &args.targets };
    let fuzzers = build_all(args.sanitizer)?;
    let mut failed = Vec::new();
    for target in targets {
        if let Err(error) = fuzz(&fuzzers, target, args.seconds) {
            say(format!("error: {target}: {error:#}"));
            failed.push(target.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("inputs were found that these targets do not stand: {}", failed.join(", "));
    }
    Ok(())
}

fn dir() -> PathBuf {
    root().join("tests/fuzz")
}

fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(dir().join("targets"))? {
        names.extend(file?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Builds all targets and returns the directory they are in.
fn build_all(sanitizer: Option<Sanitizer>) -> Result<PathBuf> {
    if find_program("cargo-fuzz").is_none() && !is_in_cargo_home("cargo-fuzz") {
        say(format!("installing cargo-fuzz {CARGO_FUZZ} (a minute)"));
        // The environment may hold a target directory that is not meant for this.
        let mut install = cargo();
        install.env_remove("CARGO_TARGET_DIR").current_dir("/");
        run(install.args(["install", "cargo-fuzz", "--locked", "--version", CARGO_FUZZ]))?;
    }
    let nightly = setup::any_nightly();
    let compiler = |program: &str| match &nightly {
        Some(name) => {
            let mut command = Command::new("rustup");
            command.args(["run", name, program]);
            command
        }
        None => {
            let mut command = Command::new(program);
            // Coverage and sanitizers are unstable options of every compiler.
            command.env("RUSTC_BOOTSTRAP", "1");
            command
        }
    };
    let sanitizer = match sanitizer {
        Some(sanitizer) => sanitizer,
        None => found_sanitizer(compiler("rustc"))?,
    };
    let by = nightly.as_deref().unwrap_or("the installed compiler");
    say(format!("fuzz targets: built by {by}, sanitizer {}", sanitizer.name()));
    let target_dir = target_dir().join("fuzz");
    let mut build = compiler("cargo");
    build.current_dir(root()).args(["fuzz", "build", "--sanitizer", sanitizer.name()]);
    run(build.arg("--fuzz-dir").arg(dir()).arg("--target-dir").arg(&target_dir))?;
    Ok(target_dir.join(host_triple()?).join("release"))
}

fn is_in_cargo_home(program: &str) -> bool {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    home.is_some_and(|home| home.join("bin").join(program).is_file())
}

/// The address sanitizer comes with compilers of rustup, not with those of every distribution.
fn found_sanitizer(mut rustc: Command) -> Result<Sanitizer> {
    let libraries = output(rustc.args(["--print", "target-libdir"]))?;
    let runtime = |name: &str| name.starts_with("librustc") && name.ends_with("_rt.asan.a");
    let is_there = fs::read_dir(Path::new(libraries.trim()))
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(runtime)));
    Ok(if is_there { Sanitizer::Address } else { Sanitizer::None })
}

/// Runs one target. Its corpus is kept below the target directory, and used the next time.
fn fuzz(fuzzers: &Path, target: &str, seconds: u32) -> Result<()> {
    const SLOW_SECONDS: u32 = 20;
    const LONGEST_INPUT: u32 = 8192;
    let [corpus, found] = ["corpus", "found"].map(|name| target_dir().join("fuzz").join(name).join(target));
    for dir in [&corpus, &found] {
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    say(format!("fuzzing {target} for {seconds} s"));
    let mut command = Command::new(fuzzers.join(target));
    command
        .env("ASAN_OPTIONS", "detect_odr_violation=0")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={SLOW_SECONDS}"))
        .arg(format!("-max_len={LONGEST_INPUT}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-verbosity=0", "-print_funcs=0", "-print_final_stats=1"])
        .arg(&corpus)
        .arg(dir().join("seeds").join(target));
    run(&mut command).with_context(|| format!("the input is in {}", found.display()))
}
