//! Checks the expected result of a probe.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_common::{V4, V6};
use proxy_conformance::{Case, Expect, NODES, Object, Probe, Protocol, Source, address, shared_objects};

use super::{
    fill::HZ,
    node::Node,
    walk::{Attempt, Datapath, Held, Outcome, Sockets},
};

/// Number of connections that reach each of four endpoints, but for one time in 10^24.
const ATTEMPTS: usize = 200;
const STICKY_ATTEMPTS: usize = 20;

/// The nodes of a cluster, with the objects of one rule.
pub(crate) struct Cluster {
    nodes: [Node; NODES],
    sockets: Sockets,
    agreed: HashMap<(&'static str, ProtocolKey, Datapath), SocketAddr>,
}

/// [`Protocol`] as a key.
type ProtocolKey = u8;

impl Cluster {
    /// A cluster without services.
    pub(crate) fn new(case: &Case) -> Self {
        Self {
            nodes: std::array::from_fn(|index| Node::new(index, case)),
            sockets: Sockets::default(),
            agreed: HashMap::new(),
        }
    }

    /// From now on there are these objects.
    pub(crate) fn apply(&mut self, objects: &[Object]) -> Result<()> {
        let all = [shared_objects(), objects.to_vec()].concat();
        self.nodes.iter_mut().try_for_each(|node| node.apply(&all))
    }

    /// Checks a probe by every data path that its client may have.
    pub(crate) fn check(&mut self, probe: &Probe) -> Result<()> {
        let datapaths: &[_] = match (&probe.from[..3], probe.protocol) {
            ("pod", Protocol::Sctp) => &[Datapath::Packets],
            ("pod", _) => &[Datapath::Sockets, Datapath::Packets],
            _ => &[Datapath::Sockets],
        };
        for &datapath in datapaths {
            let result = match probe.held {
                Some(name) => self.check_held(probe, name, datapath),
                None => self.check_new(probe, datapath),
            };
            result.with_context(|| format!("{datapath:?}"))?;
        }
        Ok(())
    }

    fn attempt(&self, probe: &Probe, datapath: Datapath, socket: u16, is_open: bool) -> Result<Outcome> {
        let Probe { from, to, protocol, .. } = *probe;
        let attempt = Attempt { from, to, protocol, datapath, socket, is_open };
        let outcome = if to.is_ipv4() {
            attempt.make::<V4>(&self.nodes.each_ref().map(|node| &node.v4))
        } else {
            attempt.make::<V6>(&self.nodes.each_ref().map(|node| &node.v6))
        };
        outcome.context("addresses of both families")
    }

    /// New connections, each from a new socket.
    fn check_new(&mut self, probe: &Probe, datapath: Datapath) -> Result<()> {
        let new = || self.attempt(probe, datapath, self.sockets.new_socket(), false);
        match &probe.expect {
            Expect::Answers(endpoints) => {
                let found = self.found(probe, datapath, ATTEMPTS, Duration::ZERO)?;
                ensure!(found.iter().eq(endpoints), "answered by {found:?} instead of {endpoints:?}");
                Ok(())
            }
            Expect::SessionAffinity(endpoints, pause) => {
                let found = self.found(probe, datapath, STICKY_ATTEMPTS, *pause)?;
                ensure!(found.is_subset(&endpoints.iter().copied().collect()), "answered by {found:?}");
                ensure!(found.len() == 1, "answered by {found:?}, not by one");
                if let (Some(name), Some(one)) = (probe.agrees, found.first()) {
                    let key = (name, probe.protocol as u8, datapath);
                    let agreed = *self.agreed.entry(key).or_insert(*one);
                    ensure!(agreed == *one, "answered by {one}, elsewhere by {agreed}");
                }
                Ok(())
            }
            Expect::Repicked(endpoints, pause) => {
                let found = self.found(probe, datapath, ATTEMPTS, *pause)?;
                ensure!(found.iter().eq(endpoints), "answered by {found:?} instead of {endpoints:?}");
                Ok(())
            }
            Expect::Refused => is(new()?, Outcome::Refused),
            Expect::NoLocalEndpoints => is(new()?, Outcome::NoLocalEndpoints),
            Expect::Denied => is(new()?, Outcome::Denied),
            Expect::Echo => is(new()?, Outcome::Echo),
            Expect::Dropped => match new()? {
                Outcome::Dropped(_) => Ok(()),
                other => bail!("{other:?}"),
            },
            Expect::Unserved => match new()? {
                Outcome::NotOurs | Outcome::Dropped(_) => Ok(()),
                other => bail!("{other:?}"),
            },
            Expect::Unanswered => match new()? {
                other @ (Outcome::To { .. } | Outcome::Echo) => bail!("{other:?}"),
                _ => Ok(()),
            },
            Expect::Kept => bail!("only connections that are held can be kept"),
        }
    }

    /// The endpoints that answer some connections, with pauses in between.
    pub(crate) fn found(
        &self,
        probe: &Probe,
        datapath: Datapath,
        attempts: usize,
        pause: Duration,
    ) -> Result<BTreeSet<SocketAddr>> {
        let mut found = BTreeSet::new();
        for _ in 0..attempts {
            match self.attempt(probe, datapath, self.sockets.new_socket(), false)? {
                Outcome::To { endpoint, client } => {
                    found.insert(endpoint);
                    self.check_source(probe, datapath, client.ip())
                        .with_context(|| format!("{endpoint} sees {client}"))?;
                }
                other => bail!("{other:?}"),
            }
            for node in &self.nodes {
                node.wait((pause.as_millis() as u32) * HZ / 1000);
            }
        }
        Ok(found)
    }

    fn check_source(&self, probe: &Probe, datapath: Datapath, seen: IpAddr) -> Result<()> {
        let is_ipv4 = probe.to.is_ipv4();
        let expected = match probe.source {
            None => return Ok(()),
            Some(Source::Client) => address(probe.from, is_ipv4),
            Some(Source::Node(node)) => address(&format!("node-{}", node + 1), is_ipv4),
            Some(Source::Hairpin) if datapath == Datapath::Packets => probe.to.ip(),
            Some(Source::Hairpin) => address(probe.from, is_ipv4),
        };
        ensure!(seen == expected, "which is not {expected}");
        Ok(())
    }

    /// A connection or socket that is kept from step to step.
    fn check_held(&mut self, probe: &Probe, name: &'static str, datapath: Datapath) -> Result<()> {
        let before = self.sockets.held(name, datapath);
        // Once connected, only socket termination affects a socket.
        let is_socket = datapath == Datapath::Sockets && !probe.from.starts_with("client");
        if before.is_some() && is_socket && probe.protocol == Protocol::Tcp {
            return Ok(());
        }
        let socket = before.map_or_else(|| self.sockets.new_socket(), |held| held.socket);
        let outcome = self.attempt(probe, datapath, socket, before.is_some())?;
        let endpoint = match outcome {
            Outcome::To { endpoint, .. } => Some(endpoint),
            _ => None,
        };
        self.sockets.hold(name, datapath, Held { socket, endpoint });
        match &probe.expect {
            Expect::Answers(endpoints) => {
                ensure!(endpoint.is_some_and(|one| endpoints.contains(&one)), "{outcome:?}");
            }
            Expect::Kept => {
                let had = before.and_then(|held| held.endpoint);
                ensure!(endpoint.is_some() && endpoint == had, "{outcome:?}, before {had:?}");
            }
            Expect::Unanswered => ensure!(endpoint.is_none(), "{outcome:?}"),
            other => bail!("a connection that is held cannot be {other:?}"),
        }
        Ok(())
    }
}

fn is(outcome: Outcome, expected: Outcome) -> Result<()> {
    ensure!(outcome == expected, "{outcome:?}");
    Ok(())
}
