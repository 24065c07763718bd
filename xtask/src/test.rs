//! Runs the tests, part by part, and sums up.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    build::{self, Executables, WORKSPACE},
    image, setup, vm,
    workspace::{cargo, find_program, host_triple, is_root, line, root, run, say},
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
    /// The manifests, and the image with the agent in a container: linked as it is shipped, but not optimised.
    Deploy,
}

/// The programs of tests, a folder of tests/tests each, by their part.
const PROGRAMS: [(&str, Part); 5] = [
    ("core", Part::Unit),
    ("packets", Part::Packets),
    ("traffic", Part::Traffic),
    (SUSTAINED, Part::Traffic),
    ("deploy", Part::Deploy),
];

/// The program of tests that take all processors.
const SUSTAINED: &str = "sustained";

#[derive(Clone, Copy, Default)]
struct Score {
    passed: u64,
    failed: u64,
}

impl Score {
    fn plus(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

/// `cargo xtask test`.
pub(crate) fn main(args: &TestArgs) -> Result<()> {
    let parts = if args.parts.is_empty() { Part::value_variants() } else { &args.parts };
    if parts.iter().any(|part| *part != Part::Unit) {
        setup::tests()?;
        mount_bpffs()?;
    }
    let built = build::for_tests()?;
    let mut scores = Vec::new();
    for part in parts {
        say(format!("tests: {part:?}"));
        let score = match part {
            Part::Unit => unit(args.filter.as_deref()),
            Part::Vm => vm::short(&built).map(|(passed, failed)| Score { passed, failed }),
            _ => integration(*part, args.filter.as_deref(), &built),
        };
        // A part that cannot run has failed; the others may still tell something.
        let score = score.unwrap_or_else(|error| {
            say(format!("error: {part:?}: {error:#}"));
            Score { passed: 0, failed: 1 }
        });
        scores.push((part, score));
    }
    println!();
    let mut total = Score::default();
    for (part, score) in scores {
        let verdict = if score.failed == 0 { "ok" } else { "FAILED" };
        let part = format!("{part:?}").to_lowercase();
        println!("{part:8} {verdict:6} {:4} passed, {:2} failed", score.passed, score.failed);
        total = total.plus(score);
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

fn unit(filter: Option<&str>) -> Result<Score> {
    let mut select = vec!["--lib".to_owned(), "--bins".to_owned()];
    select.extend(programs(Part::Unit).flat_map(|name| ["--test".to_owned(), name.to_owned()]));
    let score = cargo_test(&select, None, filter, |_| Ok(()))?;
    // Cargo runs the examples in doc comments only by themselves.
    let examples = cargo_test(&["--doc".to_owned()], None, filter, |_| Ok(()))?;
    Ok(score.plus(examples))
}

/// The programs of tests of a part.
fn programs(part: Part) -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().filter(move |(_, of)| *of == part).map(|(name, _)| *name)
}

fn integration(part: Part, filter: Option<&str>, built: &Executables) -> Result<Score> {
    let agent = built.get("proxy-agent").context("cargo has built no agent")?;
    let mut score = Score::default();
    for program in programs(part) {
        let at_a_time = (program == SUSTAINED).then_some(1);
        let select = ["--test".to_owned(), program.to_owned()];
        let of_program = cargo_test(&select, at_a_time, filter, |command| {
            command.env("PROXY_AGENT_BIN", agent);
            if part == Part::Deploy {
                command.env("PROXY_AGENT_IMAGE", image::archive_of_tests(&build::unoptimised_release()?)?);
            }
            if !is_root() {
                let sudo = find_program("sudo")
                    .context("these tests need root: there is no sudo, so run this as root")?;
                // Only the test programs run as root; what cargo builds stays ours.
                let triple = host_triple()?.to_uppercase().replace('-', "_");
                command.env(format!("CARGO_TARGET_{triple}_RUNNER"), format!("{} -E", sudo.display()));
            }
            Ok(())
        })?;
        score = score.plus(of_program);
    }
    Ok(score)
}

/// Runs `cargo test` and counts. A program that crashes or hangs counts as one failure.
fn cargo_test(
    select: &[String],
    at_a_time: Option<usize>,
    filter: Option<&str>,
    configure: impl Fn(&mut Command) -> Result<()>,
) -> Result<Score> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &LIMIT_SECONDS.to_string()]).arg(cargo().get_program());
    command
        .args(["test", "--no-fail-fast"])
        .args(WORKSPACE)
        .args(select)
        .args(["--", "--color=never"])
        .args(at_a_time.map(|count| format!("--test-threads={count}")))
        .args(filter);
    configure(&mut command)?;
    let mut child = command
        .current_dir(root())
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
                score = score.plus(Score { passed, failed });
            }
        }
    }
    let status = child.wait()?;
    // What timeout(1) says.
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
    fn every_folder_of_tests_belongs_to_a_part() {
        let folders = fs::read_dir(root().join("tests/tests")).unwrap();
        let mut folders: Vec<_> =
            folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
        folders.sort();
        let mut known: Vec<_> = PROGRAMS.iter().map(|(name, _)| *name).collect();
        known.sort_unstable();
        assert_eq!(folders, known);
    }
}
