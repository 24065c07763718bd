//! A row of the table.

use super::{Case, Step};

/// A rule of the specification and how it is shown to hold.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Names it in reports, and its objects in the cluster.
    pub id: &'static str,
    /// Where it comes from: a field, a KEP, a behaviour of kube-proxy.
    pub topic: Topic,
    /// Its text.
    pub text: &'static str,
    /// How it is shown to hold.
    pub proof: Proof,
    /// Where the proxy differs from kube-proxy's nftables backend, and why.
    pub deviation: Option<&'static str>,
}

/// The topic of a rule: the chapters of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Which objects are read at all.
    Watch,
    /// Fields of a Service.
    Service,
    /// Fields of an EndpointSlice.
    EndpointSlice,
    /// Which endpoints get new connections.
    Endpoints,
    /// Topology hints.
    Topology,
    /// How packets without an endpoint are answered.
    Rejects,
    /// `loadBalancerSourceRanges`.
    SourceRanges,
    /// Where connections go and whom servers see.
    Dispatch,
    /// `sessionAffinity`.
    Affinity,
    /// How changes affect existing connections.
    Changes,
    /// TCP, UDP, SCTP, ICMP.
    Protocols,
    /// The agent as a program: ports, health, metrics, restarts.
    Surface,
}

impl Topic {
    /// All topics.
    pub const ALL: [Self; 12] = [
        Self::Watch,
        Self::Service,
        Self::EndpointSlice,
        Self::Endpoints,
        Self::Topology,
        Self::Rejects,
        Self::SourceRanges,
        Self::Dispatch,
        Self::Affinity,
        Self::Changes,
        Self::Protocols,
        Self::Surface,
    ];

    /// Its heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Watch => "What is read",
            Self::Service => "Services",
            Self::EndpointSlice => "EndpointSlices",
            Self::Endpoints => "Which endpoints",
            Self::Topology => "Topology",
            Self::Rejects => "Without an endpoint to answer",
            Self::SourceRanges => "Source ranges",
            Self::Dispatch => "Where connections go, and whom servers see",
            Self::Affinity => "Session affinity",
            Self::Changes => "Changes",
            Self::Protocols => "Protocols",
            Self::Surface => "The agent",
        }
    }
}

/// How a rule is shown to hold.
#[derive(Clone, Copy, Debug)]
pub enum Proof {
    /// Steps for the pure core and for real traffic, for each family.
    Steps(fn(&Case) -> Vec<Step>),
    /// The same, but IPv6 has no equivalent.
    StepsOfIpv4(fn(&Case) -> Vec<Step>),
    /// Steps for the pure core; the programs are tested elsewhere, by the tests named `package: function`.
    CoreSteps(fn(&Case) -> Vec<Step>, &'static [&'static str]),
    /// Tests elsewhere, named `package: function`.
    Tests(&'static [&'static str]),
    /// Not offered; the deviation has the reason.
    Absent,
}

impl Rule {
    /// A rule with steps for both runs.
    pub const fn new(
        id: &'static str,
        topic: Topic,
        text: &'static str,
        steps: fn(&Case) -> Vec<Step>,
    ) -> Self {
        Self { id, topic, text, proof: Proof::Steps(steps), deviation: None }
    }

    /// A rule that tests elsewhere show.
    pub const fn by_tests(
        id: &'static str,
        topic: Topic,
        text: &'static str,
        tests: &'static [&'static str],
    ) -> Self {
        Self { id, topic, text, proof: Proof::Tests(tests), deviation: None }
    }

    /// A rule that is not followed.
    pub const fn absent(id: &'static str, topic: Topic, text: &'static str, reason: &'static str) -> Self {
        Self { id, topic, text, proof: Proof::Absent, deviation: Some(reason) }
    }

    /// IPv6 has no equivalent.
    #[must_use]
    pub const fn ipv4_only(self) -> Self {
        match self.proof {
            Proof::Steps(steps) => self.proof(Proof::StepsOfIpv4(steps)),
            _ => self,
        }
    }

    /// Replaces the proof.
    #[must_use]
    pub const fn proof(self, proof: Proof) -> Self {
        Self { proof, ..self }
    }

    /// Marks a deviation of the proxy, with the reason.
    #[must_use]
    pub const fn deviates(self, reason: &'static str) -> Self {
        Self { deviation: Some(reason), ..self }
    }

    /// The steps in the core's run for one family.
    pub fn core_steps(&self, case: &Case) -> Vec<Step> {
        match self.proof {
            Proof::CoreSteps(steps, _) => steps(case),
            _ => self.traffic_steps(case),
        }
    }

    /// The steps in the run with real traffic for one family.
    pub fn traffic_steps(&self, case: &Case) -> Vec<Step> {
        match self.proof {
            Proof::Steps(steps) => steps(case),
            Proof::StepsOfIpv4(steps) if case.ipv4 => steps(case),
            _ => Vec::new(),
        }
    }

    /// The tests that are named.
    pub fn tests(&self) -> &'static [&'static str] {
        match self.proof {
            Proof::CoreSteps(_, tests) | Proof::Tests(tests) => tests,
            _ => &[],
        }
    }
}
