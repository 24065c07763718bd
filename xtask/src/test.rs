//! Runs the tests, part by part, and sums up.

mod checks;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};

use crate::{
    build::{self, Executables, WORKSPACE},
    image, setup, vm,
    workspace::{cargo, find_program, is_root, line, root, run, run_by, say},
};

/// A part that takes longer has hung.
const LIMIT_SECONDS: u32 = 40 * 60;

/// Arguments of `test`.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// The parts to run. Default: all.
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Run only the tests whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Clippy and the documentation of the code as well, before the tests.
    #[arg(long)]
    lint: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Part {
    /// Tests that need no privileges, and the examples in doc comments.
    Unit,
    /// Each program run on packets, by the kernel's test run.
    Packets,
    /// Three kernels in virtual machines: packet tests, a small cluster in each, networks of devices that this machine's kernel may lack.
    Vm,
    /// Real traffic in network namespaces, and the agent against a stand-in for the API server.
    Traffic,
    /// The manifests, and the image with the agent in a container: linked as for release, but not optimised.
    Deploy,
}

/// A program with this at the end of its name runs its tests one after the other: they take all processors.
const SERIAL: &str = "_serial";

impl Part {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Does a folder of tests/tests belong to it? Its name is the part's, or begins with it: `traffic`, `traffic_serial`.
    fn has(self, folder: &str) -> bool {
        folder.strip_prefix(&self.name()).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    }
}

#[derive(Clone, Copy, Default)]
struct Score {
    passed: u64,
    failed: u64,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// `cargo xtask test`.
pub(crate) fn main(args: &TestArgs) -> Result<()> {
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    if parts.iter().any(|part| *part != Part::Unit) {
        setup::tests()?;
        mount_bpffs()?;
    }
    // Downloads wait, and building takes all processors.
    let kernels = thread::spawn({
        let is_needed = parts.contains(&Part::Vm);
        move || if is_needed { vm::fetch() } else { Ok(()) }
    });
    let built = build::for_tests()?;
    // The machines try again.
    if let Err(error) = kernels.join().map_err(|_| anyhow!("the thread that fetches kernels panicked"))? {
        say(format!("no kernels yet: {error:#}"));
    }
    let filter = args.filter.as_deref();
    let mut scores = Vec::new();
    if args.lint {
        scores.push(("lint".to_owned(), checks::lint()));
    }
    for part in parts {
        say(format!("tests: {part:?}"));
        let score = match part {
            Part::Unit => unit(filter),
            Part::Vm => machines(&built),
            Part::Packets | Part::Traffic => integration(*part, filter, &built, &[]),
            Part::Deploy => deploy(filter, &built),
        };
        // A part that cannot run has failed; the others may still succeed.
        let score = score.unwrap_or_else(|error| {
            say(format!("error: {part:?}: {error:#}"));
            Score { passed: 0, failed: 1 }
        });
        scores.push((part.name(), score));
    }
    println!();
    let mut total = Score::default();
    for (part, score) in scores {
        let verdict = if score.failed == 0 { "ok" } else { "FAILED" };
        println!("{part:8} {verdict:6} {:4} passed, {:2} failed", score.passed, score.failed);
        total.add(score);
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        bail!("tests failed");
    }
    if let Some(filter) = filter.filter(|_| total.passed == 0) {
        bail!("no test's name contains `{filter}`");
    }
    Ok(())
}

fn unit(filter: Option<&str>) -> Result<Score> {
    let mut select = vec!["--lib".to_owned(), "--bins".to_owned()];
    select.extend(programs(Part::Unit)?.into_iter().flat_map(|name| ["--test".to_owned(), name]));
    let mut score = cargo_test(&select, filter)?;
    // Cargo runs the examples in doc comments only by themselves.
    score.add(cargo_test(&["--doc".to_owned()], filter)?);
    Ok(score)
}

fn machines(built: &Executables) -> Result<Score> {
    let (passed, failed) = vm::short(built)?;
    Ok(Score { passed, failed })
}

fn deploy(filter: Option<&str>, built: &Executables) -> Result<Score> {
    let archive = image::archive_of_tests(&build::unoptimised_release()?)?;
    integration(Part::Deploy, filter, built, &[("PROXY_AGENT_IMAGE", archive)])
}

/// The programs of tests of a part: folders of tests/tests.
fn programs(part: Part) -> Result<Vec<String>> {
    let mut programs: Vec<_> = folders()?.into_iter().filter(|folder| part.has(folder)).collect();
    programs.sort();
    Ok(programs)
}

fn folders() -> Result<Vec<String>> {
    let dir = root().join("tests/tests");
    let entries = fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Runs the programs of tests of a part, as root, where `cargo test` would, with further variables.
fn integration(
    part: Part,
    filter: Option<&str>,
    built: &Executables,
    variables: &[(&str, PathBuf)],
) -> Result<Score> {
    let agent = built.get("proxy-agent").context("cargo has built no agent")?;
    let mut score = Score::default();
    for program in programs(part)? {
        let tests = built.get(&program).with_context(|| format!("cargo has built no `{program}`"))?;
        let mut command = Command::new(tests);
        command.arg("--color=never");
        command.arg(format!("--test-threads={}", threads(&program)));
        command
            .args(filter)
            .env("PROXY_AGENT_BIN", agent)
            .envs(variables.iter().cloned())
            .current_dir(root().join("tests"));
        if !is_root() {
            find_program("sudo").context("these tests need root: sudo is missing, so run this as root")?;
            command = run_by(&["sudo", "--preserve-env"], &command);
        }
        score.add(count(&command)?);
    }
    Ok(score)
}

/// How many tests run at a time. Tests wait for a third of their time, so one more than there are processors.
fn threads(program: &str) -> usize {
    if program.ends_with(SERIAL) { 1 } else { thread::available_parallelism().map_or(1, usize::from) + 1 }
}

/// Runs `cargo test`. Whatever it selects was built.
fn cargo_test(select: &[String], filter: Option<&str>) -> Result<Score> {
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]).args(WORKSPACE).args(select);
    count(command.args(["--", "--color=never"]).args(filter))
}

/// Runs tests and counts. A program that crashes or hangs counts as one failure.
fn count(command: &Command) -> Result<Score> {
    let mut command = run_by(&["timeout", "--kill-after=10", &LIMIT_SECONDS.to_string()], command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(&command)))?;
    let mut score = Score::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some((passed, failed)) = result_line(&line) {
                score.add(Score { passed, failed });
            }
        }
    }
    let status = child.wait()?;
    // The exit codes of timeout(1).
    if status.code() == Some(124) || status.code() == Some(137) {
        say(format!("error: this part was ended after {LIMIT_SECONDS} s"));
    }
    if !status.success() && score.failed == 0 {
        score.failed = 1;
    }
    Ok(score)
}

/// Reads `test result: ok. 3 passed; 0 failed; ...`.
fn result_line(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let count = |word: &str| counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok());
    Some((count("passed")?, count("failed")?))
}

/// The tests pin maps.
pub(crate) fn mount_bpffs() -> Result<()> {
    const BPFFS: &str = "/sys/fs/bpf";
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read the mount table")?;
    if mounts.lines().any(|mount| mount.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    say(format!("mounting a bpf file system at {BPFFS}"));
    let mut mount = if is_root() { Command::new("mount") } else { Command::new("sudo") };
    if !is_root() {
        mount.arg("mount");
    }
    run(mount.args(["-t", "bpf", "bpf", BPFFS]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_cargo_test_prints() {
        let ok =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        let bad =
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        assert_eq!(result_line(ok), Some((12, 0)));
        assert_eq!(result_line(bad), Some((3, 2)));
        assert_eq!(result_line("test cluster::ping ... ok"), None);
    }

    #[test]
    fn every_folder_of_tests_belongs_to_one_part() {
        for folder in folders().unwrap() {
            let parts = Part::value_variants().iter().filter(|part| part.has(&folder));
            assert_eq!(parts.count(), 1, "{folder}");
        }
        assert_eq!(programs(Part::Traffic).unwrap(), ["traffic", "traffic_serial"]);
        assert!(!Part::Unit.has("units"));
    }
}
