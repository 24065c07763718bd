//! The finding of a check, and its output.

use serde::Serialize;

use crate::output::Row;

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Pass,
    /// The agent works, perhaps not as expected.
    Warn,
    /// The agent, or a part of its services, will not work.
    Fail,
    /// The check could not be made.
    Unknown,
    /// The check does not apply to this configuration.
    Skipped,
}

impl State {
    const ALL: [Self; 5] = [Self::Pass, Self::Warn, Self::Fail, Self::Unknown, Self::Skipped];

    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
            Self::Skipped => "skipped",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Which check.
    pub(super) check: &'static str,
    /// Its outcome.
    pub(super) state: State,
    /// The facts, or why they could not be read.
    pub(super) seen: String,
    /// The advice.
    pub(super) advice: Option<String>,
    /// With it the agent ends at its start.
    #[serde(skip)]
    ends_agent: bool,
}

impl Finding {
    fn new(check: &'static str, state: State, seen: impl Into<String>) -> Self {
        Self { check, state, seen: seen.into(), advice: None, ends_agent: false }
    }

    fn with(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// A failure with which the agent ends at its start. After other failures it serves what it can, and catches up when they
    /// have passed.
    pub(super) fn that_ends_the_agent(self) -> Self {
        Self { ends_agent: true, ..self }
    }

    pub(super) fn pass(check: &'static str, seen: impl Into<String>) -> Self {
        Self::new(check, State::Pass, seen)
    }

    pub(super) fn warn(check: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, State::Warn, seen).with(advice)
    }

    pub(super) fn fail(check: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, State::Fail, seen).with(advice)
    }

    /// The check could not be made, for this reason.
    pub(super) fn unknown(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, State::Unknown, why)
    }

    /// The check does not apply, for this reason.
    pub(super) fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        Self::new(check, State::Skipped, why)
    }
}

impl Row for Finding {
    const HEADER: &'static [&'static str] = &["CHECK", "STATE", "SEEN, AND WHAT TO DO"];

    fn cells(&self) -> Vec<String> {
        let text = match &self.advice {
            Some(advice) => format!("{}\n-> {advice}", self.seen),
            None => self.seen.clone(),
        };
        vec![self.check.to_owned(), self.state.name().to_owned(), text]
    }
}

/// Whether anything failed.
pub(super) fn has_failures(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.state == State::Fail)
}

/// Whether the agent would end at its start.
pub(super) fn ends_agent(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.ends_agent)
}

/// Like `12 pass, 1 warn`.
pub(super) fn summary(findings: &[Finding]) -> String {
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let counts = State::ALL.map(|state| (count(state), state.name()));
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    counts.map(|(count, name)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{OutputFormat, render};

    #[test]
    fn the_table_has_what_to_do_below_what_was_seen() {
        let findings = [
            Finding::pass("kernel", "Linux 6.12"),
            Finding::fail("bpffs", "/tmp is tmpfs", "mount one"),
            Finding::unknown("hooks", "no permission"),
        ];
        assert_eq!(
            render(&findings, OutputFormat::Table).unwrap(),
            "CHECK    STATE     SEEN, AND WHAT TO DO\nkernel   pass      Linux 6.12\nbpffs    fail      /tmp is tmpfs\n\
             \u{20}                  -> mount one\nhooks    unknown   no permission\n"
        );
        assert_eq!(
            serde_json::to_value(&findings[1]).unwrap(),
            serde_json::json!({"check": "bpffs", "state": "fail", "seen": "/tmp is tmpfs", "advice": "mount one"})
        );
        assert_eq!(summary(&findings), "1 pass, 1 fail, 1 unknown");
        assert!(has_failures(&findings) && !has_failures(&findings[..1]) && !has_failures(&findings[2..]));
        assert!(!ends_agent(&findings) && ends_agent(&[findings[1].clone().that_ends_the_agent()]));
    }
}
