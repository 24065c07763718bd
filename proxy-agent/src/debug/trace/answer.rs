//! The result of a trace.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use proxy_common::{decide::Step, layout::set::Scope};
use serde::Serialize;

use super::{
    explain::{drop_text, for_whom},
    explore::{Explored, Explorer, Outcome},
    routing::Routing,
};
use crate::{
    datapath::address::UserFamily,
    output::{OutputFormat, document, or_dash},
};

/// Backends whose way is explained one by one.
const MAX_EXPLAINED: usize = 16;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// To a backend.
    Translate,
    /// No translation.
    Pass,
    /// The client gets an error that nothing listens.
    Reject,
    /// Dropped by design.
    Drop,
}

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::debug) struct Answer {
    pub(super) verdict: Verdict,
    /// One line, for people.
    pub(super) reason: String,
    pub(super) service: Option<String>,
    /// `internal` or `external`.
    pub(super) scope: &'static str,
    /// Only if it is certain: that of a known flow, or the only one.
    pub(super) backend: Option<SocketAddr>,
    /// All that could be chosen.
    pub(super) candidates: Vec<SocketAddr>,
    /// The source address that the backend sees; `None` if it depends on the backend.
    pub(super) source_seen: Option<IpAddr>,
    pub(super) steps: Vec<String>,
}

impl Answer {
    /// Formats it; a table is steps and verdict in lines.
    pub(in crate::debug) fn render(&self, format: OutputFormat) -> Result<String> {
        if format != OutputFormat::Table {
            return document(self, format);
        }
        let mut text = String::new();
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(text, "{number:>2}. {step}")?;
        }
        let verdict = format!("{:?}", self.verdict).to_lowercase();
        writeln!(text, "\nVERDICT      {verdict}: {}", self.reason)?;
        writeln!(text, "SERVICE      {}", or_dash(self.service.as_ref()))?;
        writeln!(text, "SCOPE        {}", self.scope)?;
        writeln!(text, "BACKEND      {}", or_dash(self.backend))?;
        let candidates: Vec<String> = self.candidates.iter().map(ToString::to_string).collect();
        writeln!(text, "CANDIDATES   {}", or_dash((!candidates.is_empty()).then(|| candidates.join(" "))))?;
        writeln!(text, "SOURCE SEEN  {}", or_dash(self.source_seen))?;
        Ok(text)
    }
}

impl<M, R: Routing> Explorer<'_, M, R> {
    /// Puts the explored outcomes into words; `notes` come last.
    pub(super) fn answer<F: UserFamily>(&self, explored: &Explored<F>, notes: Vec<String>) -> Answer {
        let verdict = explored.verdict();
        let outcome = explored.outcomes.iter().find(|outcome| outcome.verdict == verdict);
        let is_answer = outcome.is_some_and(Outcome::is_answer);
        let backend = match &explored.outcomes[..] {
            [only] if !is_answer => only.backend,
            _ => None,
        };
        let service = outcome.and_then(Outcome::service);
        Answer {
            verdict,
            reason: self.reason(explored, verdict),
            service: service.and_then(|id| self.names.get(id)),
            scope: match self.client.scope() {
                Scope::Internal => "internal",
                Scope::External => "external",
            },
            backend,
            candidates: explored.candidates.clone(),
            source_seen: if is_answer { None } else { common_source(&explored.outcomes) },
            steps: self.steps(explored, notes),
        }
    }

    fn steps<F: UserFamily>(&self, explored: &Explored<F>, notes: Vec<String>) -> Vec<String> {
        let mut lines = vec![self.headline(explored.path)];
        match &explored.outcomes[..] {
            [only] => lines.extend(only.steps.iter().filter_map(|step| self.explain(step))),
            [first, ..] => {
                // Chance decides after the set is found; until then all runs are the same.
                let shared = first
                    .steps
                    .iter()
                    .position(|step| matches!(step, Step::BackendSet(..)))
                    .map_or(0, |at| at + 1);
                lines.extend(first.steps.iter().take(shared).filter_map(|step| self.explain(step)));
                lines.extend(self.ways(&explored.outcomes, shared));
            }
            [] => {}
        }
        lines.extend(notes);
        lines
    }

    /// The outcome with each backend, where it has something to show.
    fn ways<F: UserFamily>(&self, outcomes: &[Outcome<F>], shared: usize) -> Vec<String> {
        let way = |outcome: &Outcome<F>| {
            let own = outcome.steps.iter().skip(shared);
            let backend = own.clone().find_map(|step| match step {
                Step::Backend(backend) => Some(F::to_socket(&backend.addr, backend.port)),
                _ => None,
            });
            let words: Vec<String> = own.filter_map(|step| self.explain(step)).collect();
            (!words.is_empty()).then(|| format!("with {}: {}", or_dash(backend), words.join("; ")))
        };
        let mut ways: Vec<String> = outcomes.iter().filter_map(way).collect();
        if ways.len() > MAX_EXPLAINED {
            let more = ways.len() - MAX_EXPLAINED;
            ways.truncate(MAX_EXPLAINED);
            ways.push(format!("and so on for {more} more"));
        }
        ways
    }

    fn reason<F: UserFamily>(&self, explored: &Explored<F>, verdict: Verdict) -> String {
        let Some(outcome) = explored.outcomes.iter().find(|outcome| outcome.verdict == verdict) else {
            return String::new();
        };
        if outcome.is_answer() {
            return "a reply in a known flow".to_owned();
        }
        if outcome.is_known_flow() && verdict == Verdict::Translate {
            return "a known flow keeps its backend".to_owned();
        }
        if outcome.is_kept() && verdict == Verdict::Translate {
            return "the client keeps the endpoint it had (session affinity)".to_owned();
        }
        let service = outcome.service().map(|id| self.service(id)).unwrap_or_default();
        let last = |text: &dyn Fn(&Step<F>) -> Option<String>| outcome.steps.iter().rev().find_map(text);
        match verdict {
            Verdict::Translate => {
                let others = explored.outcomes.iter().filter(|other| other.verdict != verdict).count();
                let but = if others > 0 { format!("; {others} of them would not do") } else { String::new() };
                match explored.candidates.len() {
                    1 => format!("the only backend of {service}"),
                    count => format!("one of {count} backends of {service}, at random{but}"),
                }
            }
            Verdict::Pass if self.client.scope() == Scope::External && outcome.service().is_some() => {
                format!("the cluster IP of {service} is not for clients outside")
            }
            Verdict::Pass if outcome.service().is_some() => format!(
                "{service} has source ranges, and the client's address is not known here: left to the programs that \
                 see its packets"
            ),
            Verdict::Pass if self.is_unseen() => "socket hooks do not see SCTP".to_owned(),
            Verdict::Pass => "it belongs to no service".to_owned(),
            Verdict::Reject => last(&|step| match step {
                Step::BackendSet(role, _) => Some(format!("{service} has no endpoints {}", for_whom(*role))),
                Step::UndefinedPort(_) => self.explain(step),
                Step::KnownFlow(_) => {
                    Some(format!("the endpoint of {service} is gone: the connection is reset"))
                }
                _ => None,
            })
            .unwrap_or_else(|| format!("{service} cannot be reached")),
            Verdict::Drop => last(&|step| match step {
                Step::Drop(reason) => Some(drop_text(*reason).to_owned()),
                _ => None,
            })
            .unwrap_or_else(|| format!("{service} has no endpoints that may be used here")),
        }
    }
}

/// The source that every backend would see, if it is the same.
fn common_source<F: UserFamily>(outcomes: &[Outcome<F>]) -> Option<IpAddr> {
    let mut sources =
        outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Translate).map(|outcome| outcome.source);
    let first = sources.next()??;
    sources.all(|source| source == Some(first)).then_some(first)
}
