//! The steps of a rule: objects, and the expected results.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;

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

/// The objects of a rule at one time, and the expected results. Objects of an earlier step that this one does not have are deleted.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// All objects of the rule.
    pub objects: Vec<Object>,
    /// The expected results.
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

    /// Sets the source that servers must see in the last probe (both, if it was of two protocols).
    #[must_use]
    pub fn seen_as(mut self, source: Source) -> Self {
        self.last_probes().for_each(|probe| probe.source = Some(source));
        self
    }

    /// Requires that the last probe (both, if it was of two protocols) finds the same endpoint as others that agree by
    /// this name and protocol.
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
    /// The expected result.
    pub expect: Expect,
    /// The source that the server must see, if it matters.
    pub source: Option<Source>,
    /// A name by which [`Expect::SessionAffinity`] probes agree on one endpoint.
    pub agrees: Option<&'static str>,
    /// One connection (or UDP socket) for all steps that name it.
    pub held: Option<&'static str>,
}

/// The protocol of a probe.
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

/// The expected result.
#[derive(Clone, Debug)]
pub enum Expect {
    /// New connections reach each of these endpoints, and no other.
    Answers(Vec<SocketAddr>),
    /// The client gets an error: ECONNREFUSED, at once for sockets, by ICMP port unreachable for packets.
    Refused,
    /// There are endpoints, but a traffic policy keeps them from this client: packets are dropped, sockets get EHOSTUNREACH.
    NoLocalEndpoints,
    /// The client is not in the source ranges: packets are dropped, sockets get EPERM.
    Denied,
    /// Packets are dropped.
    Dropped,
    /// Not ours: nothing is translated, and no error is sent.
    Unserved,
    /// No server answers, whatever error the client gets.
    Unanswered,
    /// All new connections reach the same one of these endpoints, with pauses in between.
    SessionAffinity(Vec<SocketAddr>, Duration),
    /// New connections reach more than one of these endpoints, with pauses in between.
    Repicked(Vec<SocketAddr>, Duration),
    /// The held connection still has the endpoint it had, and never failed.
    Kept,
    /// The ping is answered.
    Echo,
}

/// The source that the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's own address.
    Client,
    /// An address of the node with this index.
    Node(usize),
    /// Another source than the server: the client's address by sockets, the VIP by packets.
    Hairpin,
}
