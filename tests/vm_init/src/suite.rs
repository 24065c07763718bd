//! Runs suites of the integration tests that were put into the machine, and reports each of their tests as a check.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use proxy_harness::kernel_capabilities::MARK;

use crate::{Report, times::Times};

/// A suite that takes longer has hung, or the host is too busy.
const LIMIT: Duration = Duration::from_secs(1800);

/// Tests of packets that are left out: they ask the decision core for thousands of packets, for which an emulated processor
/// takes minutes, and what they find is not the kernel's.
const MANY_PACKETS: [&str; 4] = ["bystanders::", "ports::", "slow_path_limits::", "to_stack::"];

/// Variables of the tests' environment. Fewer random packets and bytes than elsewhere: this processor is an emulated one.
const ENVIRONMENT: [(&str, &str); 6] = [
    ("PATH", "/bin"),
    ("PROXY_AGENT_BIN", "/proxy-agent"),
    ("PROXY_AGENT_BPF_DIR", "/bpf"),
    ("PROXY_PEER_BIN", "/peer"),
    ("PROXY_AGENT_RANDOM_PACKETS", "2000"),
    ("PROXY_AGENT_NETWORKS_BYTES", "500000"),
];

/// The shapes that the suite `networks` tries.
const SHAPES: &str = "PROXY_AGENT_NETWORKS_ONLY";

/// Leaves out some.
const SHORT: &str = "PROXY_AGENT_NETWORKS_SHORT";

/// The wanted part of `networks`.
pub(crate) struct Wanted {
    /// But the shapes whose name contains this.
    pub(crate) shape: String,
    /// But those of devices that few kernels have.
    pub(crate) is_short: bool,
}

/// The program that has a suite's tests, and the arguments that select them.
fn program(suite: &str) -> (&'static str, Vec<String>) {
    const VERIFIER: &str = "verifier::";
    match suite {
        "packets" => {
            let skip = MANY_PACKETS.iter().chain([&VERIFIER]).flat_map(|name| ["--skip", name]);
            ("/tests/packets", skip.map(str::to_owned).collect())
        }
        "verifier" => ("/tests/packets", vec![VERIFIER.to_owned()]),
        // Some tests of a file.
        tests if tests.contains("::") => ("/tests/traffic", vec![tests.to_owned()]),
        // A file of tests.
        topic => ("/tests/traffic", vec![format!("{topic}::")]),
    }
}

/// Runs a suite, one test after the other.
pub(crate) fn run(report: &mut Report, name: &str, wanted: &Wanted) {
    let times = Times::now();
    let mut suite = Suite::default();
    let ended = suite.follow(name, wanted);
    println!("{name} took {times}");
    for (test, Test { verdict, output }) in &suite.tests {
        report.test(&format!("{name} {test}"), *verdict, output);
    }
    // A failed test has reported it.
    if let Err(error) = ended {
        report.check::<()>(&format!("{name} runs to its end"), Err(error));
    } else if suite.tests.is_empty() {
        report.check::<()>(name, Err(anyhow!("no such suite")));
    }
}

/// How a test went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Failed,
    /// Not run, or not to its end.
    #[default]
    Unknown,
}

#[derive(Default)]
struct Test {
    verdict: Verdict,
    output: Vec<String>,
}

/// The output so far of a program of tests.
#[derive(Default)]
struct Suite {
    tests: BTreeMap<String, Test>,
    /// The test whose output follows.
    current: Option<String>,
    is_complete: bool,
}

impl Suite {
    /// Runs a suite's program and reads its output; the console gets it too.
    fn follow(&mut self, suite: &str, wanted: &Wanted) -> Result<()> {
        let (program, selection) = program(suite);
        let mut child = Command::new(program)
            .args(["--test-threads=1", "--show-output", "--color=never"])
            .args(selection)
            .envs(ENVIRONMENT)
            .env(SHAPES, &wanted.shape)
            .envs(wanted.is_short.then_some((SHORT, "1")))
            .env("PROXY_TESTS_EMULATED", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let output = child.stdout.take().context("no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let end = Instant::now() + LIMIT;
        while let Ok(line) = lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            println!("{line}");
            self.line(&line);
        }
        if Instant::now() >= end {
            child.kill()?;
        }
        let status = child.wait()?;
        anyhow::ensure!(self.is_complete, "it ended in the middle: {status}");
        Ok(())
    }

    /// Reads a line of libtest's.
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----")) {
            self.current = Some(name.to_owned());
        } else if ["successes:", "failures:"].contains(&line) || line.starts_with("test result: ") {
            self.current = None;
            self.is_complete |= line.starts_with("test result: ");
        } else if let Some(name) = &self.current {
            self.tests.entry(name.clone()).or_default().output.push(line.to_owned());
        } else if let Some((name, verdict)) =
            line.strip_prefix("test ").and_then(|line| line.split_once(" ... "))
        {
            let verdict = match verdict {
                "ok" => Verdict::Passed,
                "FAILED" => Verdict::Failed,
                // It may have been interrupted by its own output.
                _ => Verdict::Unknown,
            };
            self.tests.entry(name.to_owned()).or_default().verdict = verdict;
        }
    }
}

/// The capability that a test lacked, by its output: a test that continues prints it in a separate line, one that does
/// not has it in its error.
pub(crate) fn missing_capability(verdict: Verdict, output: &[String]) -> Option<&str> {
    output.iter().find_map(|line| {
        let (before, reason) = line.split_once(MARK)?;
        (before.is_empty() == (verdict == Verdict::Passed)).then_some(reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test v4::good ... ok
test v4::half ... ok
test v6::bad ... FAILED
test v6::lacking ... FAILED

successes:

---- v4::half stdout ----
not possible on this kernel: eggs

successes:
    v4::good
    v4::half

failures:

---- v6::bad stdout ----
not possible on this kernel: eggs

thread 'v6::bad' panicked at here
test with strange output ... ok
---- v6::lacking stdout ----
Error: ham

Caused by:
    not possible on this kernel: spam

failures:
    v6::bad
    v6::lacking

test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn parses_tests_and_their_output() {
        let mut suite = Suite::default();
        OUTPUT.lines().for_each(|line| suite.line(line));
        assert!(suite.is_complete);
        let found: Vec<_> = suite
            .tests
            .iter()
            .map(|(name, test)| (name.as_str(), test.verdict, missing_capability(test.verdict, &test.output)))
            .collect();
        assert_eq!(
            found,
            [
                ("v4::good", Verdict::Passed, None),
                ("v4::half", Verdict::Passed, Some("eggs")),
                ("v6::bad", Verdict::Failed, None),
                ("v6::lacking", Verdict::Failed, Some("spam")),
            ]
        );
        assert!(suite.tests["v6::bad"].output.iter().any(|line| line.contains("panicked")));
    }
}
