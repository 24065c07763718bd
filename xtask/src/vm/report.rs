//! Parses a machine's output on its console. The other side is `tests/vm_init/src`.

use std::collections::{BTreeMap, BTreeSet};

/// How a machine did.
#[derive(Default)]
pub(super) struct Report {
    pub(super) passed: u64,
    pub(super) failed: Vec<Failure>,
    /// Tests that were not possible, or only in part, and why.
    pub(super) lacking: Vec<Lacking>,
    /// By program: how many instructions the verifier went through, or another word of its.
    pub(super) verified: BTreeMap<String, String>,
    /// By program: the ways in which it was attached.
    pub(super) attached: BTreeMap<String, BTreeSet<String>>,
    /// By shape of a network, then by path and family: `yes`, or `no` or `error` and a reason.
    pub(super) networks: BTreeMap<String, BTreeMap<String, String>>,
    /// Whether it got to its end.
    pub(super) is_done: bool,
    /// A failure whose output may go on.
    is_failing: bool,
}

/// A check that failed.
pub(super) struct Failure {
    pub(super) name: String,
    pub(super) output: Vec<String>,
}

/// A test of something that the kernel does not have.
pub(super) struct Lacking {
    pub(super) test: String,
    pub(super) reason: String,
    /// The rest of it was possible, and passed.
    pub(super) in_part: bool,
}

impl Report {
    /// Nothing, for [`Self::add`].
    pub(super) fn empty() -> Self {
        Self { is_done: true, ..Self::default() }
    }

    /// Reads a line of the console.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(output) = line.strip_prefix("    ") {
            if let Some(failure) = self.failed.last_mut().filter(|_| self.is_failing) {
                failure.output.push(output.to_owned());
            }
            return;
        }
        self.is_failing = false;
        let Some((word, rest)) = line.split_once(' ') else {
            self.is_done |= line == "DONE";
            return;
        };
        match word {
            "CHECK" => self.check(rest),
            "VERIFIED" => {
                if let Some((program, count)) = rest.split_once(' ') {
                    self.verified.insert(program.to_owned(), count.to_owned());
                }
            }
            "ATTACHED" => {
                if let Some((program, how)) = rest.split_once(' ') {
                    self.attached.entry(program.to_owned()).or_default().insert(how.to_owned());
                }
            }
            "NETWORK" => {
                if let [shape, column, cell] = rest.splitn(3, " | ").collect::<Vec<_>>()[..] {
                    self.networks
                        .entry(shape.to_owned())
                        .or_default()
                        .insert(column.to_owned(), cell.to_owned());
                }
            }
            _ => {}
        }
    }

    fn check(&mut self, check: &str) {
        let (verdict, name) = check.split_once(' ').unwrap_or((check, ""));
        match verdict {
            "PASS" => self.passed += 1,
            "PART" | "NOT" => {
                let in_part = verdict == "PART";
                self.passed += u64::from(in_part);
                let (test, reason) = name.split_once(": ").unwrap_or((name, "?"));
                self.lacking.push(Lacking { test: test.to_owned(), reason: reason.to_owned(), in_part });
            }
            "FAIL" => {
                self.fail(name);
                self.is_failing = true;
            }
            _ => {}
        }
    }

    /// Adds what another machine with the same kernel reported.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.lacking.extend(other.lacking);
        self.verified.extend(other.verified);
        for (program, ways) in other.attached {
            self.attached.entry(program).or_default().extend(ways);
        }
        self.networks.extend(other.networks);
        self.is_done &= other.is_done;
    }

    /// Notes that something else went wrong.
    pub(super) fn fail(&mut self, what: impl Into<String>) {
        self.failed.push(Failure { name: what.into(), output: Vec::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_console() {
        let mut report = Report::default();
        "CHECK PASS one\nCHECK FAIL two: because\n    of this\n    and that\nnoise\n    indented\n\
         CHECK PART a test v4::x: no eggs\nCHECK NOT a test v6::x: no ham\n\
         VERIFIED probe 12\nATTACHED probe tcx\nATTACHED probe clsact\n\
         NETWORK a tunnel, remote | pod v4 | no TCP: a | b\nDONE"
            .lines()
            .for_each(|line| report.line(line));
        assert!(report.is_done);
        assert_eq!(report.passed, 2);
        assert_eq!(report.failed.len(), 1);
        assert_eq!((report.failed[0].name.as_str(), report.failed[0].output.len()), ("two: because", 2));
        let lacking = |n: usize| (report.lacking[n].test.as_str(), report.lacking[n].reason.as_str());
        // Names of tests have colons, but no blank behind them.
        assert_eq!((lacking(0), lacking(1)), (("a test v4::x", "no eggs"), ("a test v6::x", "no ham")));
        assert_eq!(report.verified["probe"], "12");
        assert_eq!(report.attached["probe"].len(), 2);
        assert_eq!(report.networks["a tunnel, remote"]["pod v4"], "no TCP: a | b");
    }
}
