//! Why Services are not served as they should be. Each is its own problem: everything else is applied.

use std::collections::{BTreeMap, BTreeSet};

use crate::{datapath::services::error::WriteError, model::objects::ObjectName};

/// A kind of problem that a Service may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The maps are full, and cannot grow.
    NoRoom,
    /// The kernel refused a write.
    WriteFailed,
    /// It has more of something than a Service may have.
    TooLarge,
    /// Another Service has one of its addresses or node ports.
    Conflict,
}

impl Reason {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::NoRoom, Self::WriteFailed, Self::TooLarge, Self::Conflict];

    /// As metrics and Events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoRoom => "MapFull",
            Self::WriteFailed => "MapWriteFailed",
            Self::TooLarge => "ServiceTooLarge",
            Self::Conflict => "FrontendConflict",
        }
    }
}

/// A problem of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The Service.
    pub service: ObjectName,
    /// Which kind.
    pub reason: Reason,
    /// In words.
    pub text: String,
}

/// Present problems of Services, and which were reported.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// By the Services that the maps did not take.
    failures: BTreeMap<ObjectName, (Reason, String)>,
    excesses: BTreeMap<ObjectName, String>,
    reported: BTreeSet<Problem>,
}

impl Problems {
    /// The errors of writing a Service; empty: none.
    pub(super) fn set_failure(&mut self, name: &ObjectName, errors: &[WriteError]) {
        if errors.is_empty() {
            self.failures.remove(name);
            return;
        }
        let is_full = errors.iter().all(|error| error.full().is_some());
        let texts: Vec<String> = errors.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = errors.len() - texts.len();
        let more = if more > 0 { format!("; and {more} more of its ports") } else { String::new() };
        let reason = if is_full { Reason::NoRoom } else { Reason::WriteFailed };
        self.failures.insert(name.clone(), (reason, texts.join("; ") + &more));
    }

    /// The excess of a Service, if any.
    pub(super) fn set_excess(&mut self, name: &ObjectName, excess: Option<String>) {
        match excess {
            Some(text) => drop(self.excesses.insert(name.clone(), format!("service {name}: {text}"))),
            None => drop(self.excesses.remove(name)),
        }
    }

    /// Whether the kernel refused a write for this Service.
    pub(super) fn is_refused(&self, name: &ObjectName) -> bool {
        self.failures.get(name).is_some_and(|(reason, _)| *reason == Reason::WriteFailed)
    }

    /// All problems, with the frontends that Services want and others have.
    pub(super) fn all(&self, conflicts: Vec<(ObjectName, String)>) -> BTreeSet<Problem> {
        let failures = self.failures.iter().map(|(service, (reason, text))| (service, *reason, text.clone()));
        let excesses = self.excesses.iter().map(|(service, text)| (service, Reason::TooLarge, text.clone()));
        let mut all: BTreeSet<Problem> = failures
            .chain(excesses)
            .map(|(service, reason, text)| Problem { service: service.clone(), reason, text })
            .collect();
        all.extend(conflicts.into_iter().map(|(service, text)| Problem {
            service,
            reason: Reason::Conflict,
            text,
        }));
        all
    }

    /// The new ones among all problems, and how many Services have none any more.
    pub(super) fn report(&mut self, all: &BTreeSet<Problem>) -> (Vec<Problem>, usize) {
        let new = all.difference(&self.reported).cloned().collect();
        let names = |problems: &BTreeSet<Problem>| -> BTreeSet<ObjectName> {
            problems.iter().map(|problem| problem.service.clone()).collect()
        };
        let solved = names(&self.reported).difference(&names(all)).count();
        self.reported.clone_from(all);
        (new, solved)
    }
}

/// At most so many errors of one Service are shown: each of its ports has one.
const SHOWN: usize = 3;

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::datapath::{room::Part, services::error::Cause};

    #[test]
    fn problems_are_reported_once_and_have_a_reason() {
        let (web, api) = (ObjectName::new("default", "web"), ObjectName::new("default", "api"));
        let mut problems = Problems::default();
        let full = || WriteError::from(Cause::Full(Part::ServicePorts));
        problems.set_failure(&web, &[full(), full(), full(), full()]);
        problems.set_excess(&api, Some("5000 ports".into()));
        let all = problems.all(vec![(api.clone(), "node port 30000 is another's".into())]);
        let reasons: Vec<&str> = all.iter().map(|problem| problem.reason.name()).collect();
        assert_eq!(reasons, ["ServiceTooLarge", "FrontendConflict", "MapFull"]);
        let text = &all.last().unwrap().text;
        assert!(
            text.contains("no room for another service port") && text.ends_with("and 1 more of its ports"),
            "{text}"
        );
        assert_eq!(problems.report(&all).0.len(), 3);
        assert_eq!(problems.report(&all), (Vec::new(), 0));
        assert!(!problems.is_refused(&web));

        problems.set_failure(&web, &[full(), Cause::Kernel(io::ErrorKind::PermissionDenied.into()).into()]);
        assert!(problems.is_refused(&web));
        let all = problems.all(Vec::new());
        let (new, solved) = problems.report(&all);
        assert_eq!((new.len(), new[0].reason, solved), (1, Reason::WriteFailed, 0));
        problems.set_failure(&web, &[]);
        problems.set_excess(&api, None);
        let all = problems.all(Vec::new());
        assert_eq!(problems.report(&all), (Vec::new(), 2));
    }
}
