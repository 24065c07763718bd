//! What a row of the table says.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

use super::Site;

/// A rule of the specification and how it is shown to hold.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Names it in reports, and its objects in the cluster.
    pub id: &'static str,
    /// Where it comes from: a field, a KEP, a behaviour of kube-proxy.
    pub topic: Topic,
    /// What it says.
    pub text: &'static str,
    /// How it is shown to hold.
    pub proof: Proof,
    /// Where the proxy differs from kube-proxy's nftables backend, and why.
    pub deviation: Option<&'static str>,
}

/// What a rule is about: the chapters of the document.
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
    /// What happens when nobody can answer.
    Rejects,
    /// `loadBalancerSourceRanges`.
    SourceRanges,
    /// Where connections go and whom servers see.
    Dispatch,
    /// `sessionAffinity`.
    Affinity,
    /// What changes do to what is under way.
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
            Self::Rejects => "When nobody can answer",
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
    Steps(fn(&Site) -> Vec<Step>),
    /// The same, but there is no such thing in IPv6.
    StepsOfIpv4(fn(&Site) -> Vec<Step>),
    /// Steps for the pure core; the programs are tested elsewhere, by the tests named `package: function`.
    CoreSteps(fn(&Site) -> Vec<Step>, &'static [&'static str]),
    /// Tests elsewhere, named `package: function`.
    Tests(&'static [&'static str]),
    /// Not offered; the deviation says why.
    Absent,
}

impl Rule {
    /// A rule with steps for both runs.
    pub const fn new(
        id: &'static str,
        topic: Topic,
        text: &'static str,
        steps: fn(&Site) -> Vec<Step>,
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

    /// There is no such thing in IPv6.
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

    /// Says where the proxy differs and why.
    #[must_use]
    pub const fn deviates(self, reason: &'static str) -> Self {
        Self { deviation: Some(reason), ..self }
    }

    /// The steps in the core's run for one family.
    pub fn core_steps(&self, site: &Site) -> Vec<Step> {
        match self.proof {
            Proof::CoreSteps(steps, _) => steps(site),
            _ => self.traffic_steps(site),
        }
    }

    /// The steps in the run with real traffic for one family.
    pub fn traffic_steps(&self, site: &Site) -> Vec<Step> {
        match self.proof {
            Proof::Steps(steps) => steps(site),
            Proof::StepsOfIpv4(steps) if site.ipv4 => steps(site),
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

/// A Kubernetes object, or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Object(pub Value);

impl Object {
    /// Changes it by a JSON merge patch (RFC 7386).
    #[must_use]
    pub fn with(mut self, patch: Value) -> Self {
        merge(&mut self.0, patch);
        self
    }
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// The objects of a rule at one time, and what then must hold. What an earlier step had and this one has not is deleted.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// All objects of the rule.
    pub objects: Vec<Object>,
    /// What must hold.
    pub probes: Vec<Probe>,
}

impl Step {
    /// A step with these objects.
    pub fn new(objects: impl IntoIterator<Item = Object>) -> Self {
        Self { objects: objects.into_iter().collect(), probes: Vec::new() }
    }

    /// Adds a probe over TCP and one over UDP.
    #[must_use]
    pub fn probe(self, from: &'static str, to: SocketAddr, expect: Expect) -> Self {
        self.probe_by(&[Protocol::Tcp, Protocol::Udp], from, to, expect)
    }

    /// Adds a probe over each protocol.
    #[must_use]
    pub fn probe_by(
        mut self,
        protocols: &[Protocol],
        from: &'static str,
        to: SocketAddr,
        expect: Expect,
    ) -> Self {
        for &protocol in protocols {
            let expect = expect.clone();
            self.probes.push(Probe { from, to, protocol, expect, source: None, agrees: None, held: None });
        }
        self
    }

    /// Adds the same probe from many.
    #[must_use]
    pub fn probe_from(self, froms: &[&'static str], to: SocketAddr, expect: &Expect) -> Self {
        froms.iter().fold(self, |step, from| step.probe(from, to, expect.clone()))
    }

    /// Says whom servers must see in the last probe (both, if it was of two protocols).
    #[must_use]
    pub fn seen_as(mut self, source: Source) -> Self {
        self.last_probes().for_each(|probe| probe.source = Some(source));
        self
    }

    /// Says that the last probe (both, if it was of two protocols) finds the same endpoint as others that agree by this
    /// name and protocol.
    #[must_use]
    pub fn agreeing(mut self, name: &'static str) -> Self {
        self.last_probes().for_each(|probe| probe.agrees = Some(name));
        self
    }

    fn last_probes(&mut self) -> impl Iterator<Item = &mut Probe> {
        let last = self.probes.last().map(|probe| (probe.from, probe.to));
        self.probes.iter_mut().rev().take_while(move |probe| Some((probe.from, probe.to)) == last)
    }

    /// Adds a probe that keeps its connection (or socket) under a name, for further steps to look at.
    #[must_use]
    pub fn held(
        mut self,
        name: &'static str,
        protocol: Protocol,
        from: &'static str,
        to: SocketAddr,
        expect: Expect,
    ) -> Self {
        self.probes.push(Probe { from, to, protocol, expect, source: None, agrees: None, held: Some(name) });
        self
    }
}

/// A conversation to try.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `pod-1a` (the first pod of the first node), `node-1` or `client` (outside).
    pub from: &'static str,
    /// Where to.
    pub to: SocketAddr,
    /// How.
    pub protocol: Protocol,
    /// What must happen.
    pub expect: Expect,
    /// Whom the server must see, if that matters.
    pub source: Option<Source>,
    /// A name by which [`Expect::Sticky`] probes agree on one endpoint.
    pub agrees: Option<&'static str>,
    /// One connection (or UDP socket) for all steps that name it.
    pub held: Option<&'static str>,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP; real traffic by connected and by unconnected sockets.
    Udp,
    /// SCTP; the core only.
    Sctp,
    /// ICMP echo.
    Ping,
}

/// What must happen.
#[derive(Clone, Debug)]
pub enum Expect {
    /// New connections reach each of these endpoints, and nobody else.
    Answers(Vec<SocketAddr>),
    /// The client is told that nobody listens: ECONNREFUSED, at once for sockets, by ICMP port unreachable for packets.
    Refused,
    /// There are endpoints, but a traffic policy keeps them from this client: packets are dropped, sockets learn that the
    /// host is unreachable.
    Withheld,
    /// The client is not in the source ranges: packets are dropped, sockets learn that it is not permitted.
    Denied,
    /// Packets are dropped.
    Dropped,
    /// Not ours: nothing is translated and nobody is told.
    Unserved,
    /// Nobody answers, whatever the client is told.
    Unanswered,
    /// All new connections reach the same one of these endpoints, with pauses in between.
    Sticky(Vec<SocketAddr>, Duration),
    /// New connections reach more than one of these endpoints, with pauses in between.
    Repicked(Vec<SocketAddr>, Duration),
    /// The held connection still has the endpoint it had, and never failed.
    Kept,
    /// The ping is answered.
    Echo,
}

/// Whom the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own address.
    Client,
    /// An address of the node with this index.
    Node(usize),
    /// Somebody who is not the server: the client's address by sockets, the VIP by packets.
    Hairpin,
}
