//! Trying one probe.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    super::{Expect, Probe, Protocol, Source, node_of},
    held::Held,
    host,
    network::Network,
};
use proxy_harness::cluster::{Call, Host, Protocol as By, Reply};

/// Number of requests that reach each of two, three or four endpoints, but for one time in some millions.
const ENOUGH: [usize; 5] = [2, 2, 28, 44, 60];
const STICKY: usize = 12;
const REPICKED: usize = 14;
/// By then clients must have got an error (upstream's tests require it).
const TOLD: Duration = Duration::from_millis(2900);
/// A drop is nothing to wait for long.
const DROPPED: Duration = Duration::from_millis(400);
/// A ping is answered here or nowhere.
const PING: Duration = Duration::from_millis(500);
/// Sockets get their errors at once.
const AT_ONCE_MS: u64 = 500;

impl Network<'_> {
    /// Tries a probe whose connections are new.
    pub(super) fn check(&self, probe: &Probe, held: &mut Held) -> Result<()> {
        let from = host(self.cluster, probe.from)?;
        if probe.protocol == Protocol::Ping {
            return ping(from, probe);
        }
        if let Expect::Answers(endpoints) = &probe.expect {
            return self.check_answers(probe, from, endpoints);
        }
        for &protocol in protocols(probe) {
            let call = from.call(probe.to).protocol(protocol);
            self.check_by(probe, from, &call, held).with_context(|| format!("{protocol:?}"))?;
        }
        Ok(())
    }

    /// All kinds of sockets together reach every endpoint.
    fn check_answers(&self, probe: &Probe, from: &Host, endpoints: &[SocketAddr]) -> Result<()> {
        let protocols = protocols(probe);
        let count = ENOUGH.get(endpoints.len()).copied().unwrap_or(100) / protocols.len();
        let mut found = BTreeSet::new();
        for &protocol in protocols {
            let replies = from.call(probe.to).protocol(protocol).times(count)?;
            let answered = self.found(probe, from, replies).with_context(|| format!("{protocol:?}"))?;
            found.extend(answered);
        }
        ensure!(found.iter().eq(endpoints), "answered by {found:?} instead of {endpoints:?}");
        Ok(())
    }

    fn check_by(&self, probe: &Probe, from: &Host, call: &Call<'_>, held: &mut Held) -> Result<()> {
        let by_socket = self.by_socket(probe.from, probe.to);
        let error_by = |socket: &'static str, packet| if by_socket { socket } else { packet };
        match &probe.expect {
            Expect::SessionAffinity(endpoints, pause) => {
                let found = self.found_with_pauses(probe, from, call, *pause, STICKY, false)?;
                ensure!(found.len() == 1, "answered by {found:?}, not by one");
                let one = found.first().copied();
                ensure!(one.is_some_and(|one| endpoints.contains(&one)), "answered by {found:?}");
                held.agree(probe, one)
            }
            Expect::Repicked(endpoints, pause) => {
                let found = self.found_with_pauses(probe, from, call, *pause, REPICKED, true)?;
                ensure!(found.len() > 1, "answered by {found:?} only");
                ensure!(found.iter().all(|one| endpoints.contains(one)), "answered by {found:?}");
                Ok(())
            }
            Expect::Refused => {
                let reply = call.clone().timeout(TOLD).once()?;
                ensure!(reply.error.as_deref() == Some("ECONNREFUSED"), "{reply:?}");
                ensure!(!by_socket || reply.elapsed_ms < AT_ONCE_MS, "only after {} ms", reply.elapsed_ms);
                Ok(())
            }
            Expect::NoLocalEndpoints => fails(call, error_by("EHOSTUNREACH", "ETIMEDOUT")),
            Expect::Denied => fails(call, error_by("EPERM", "ETIMEDOUT")),
            Expect::Dropped => fails(call, "ETIMEDOUT"),
            Expect::Unanswered => {
                let reply = call.clone().timeout(DROPPED).once()?;
                ensure!(reply.error.is_some(), "{reply:?}");
                Ok(())
            }
            Expect::Unserved => {
                let reply = call.clone().timeout(DROPPED).once()?;
                let error = reply.error.as_deref().with_context(|| format!("{reply:?}"))?;
                // A host that has the address may refuse by itself; no other may.
                let is_a_machine = probe.to.ip().is_loopback()
                    || self.cluster.nodes.iter().any(|node| node.owns(probe.to.ip()));
                ensure!(is_a_machine || error != "ECONNREFUSED", "{reply:?}");
                Ok(())
            }
            Expect::Answers(_) | Expect::Kept | Expect::Echo => {
                bail!("{:?} is not expected here", probe.expect)
            }
        }
    }

    fn found_with_pauses(
        &self,
        probe: &Probe,
        from: &Host,
        call: &Call<'_>,
        pause: Duration,
        count: usize,
        until_two: bool,
    ) -> Result<BTreeSet<SocketAddr>> {
        if pause.is_zero() {
            return self.found(probe, from, call.times(count)?);
        }
        let mut found = BTreeSet::new();
        for _ in 0..count {
            found.extend(self.found(probe, from, vec![call.once()?])?);
            if until_two && found.len() > 1 {
                break;
            }
            // The rule is about time.
            thread::sleep(pause);
        }
        Ok(found)
    }

    /// The endpoints that answered; every request must be answered, and every server must have seen the expected source.
    fn found(&self, probe: &Probe, from: &Host, replies: Vec<Reply>) -> Result<BTreeSet<SocketAddr>> {
        let mut found = BTreeSet::new();
        for reply in replies {
            let answer = reply.answer.with_context(|| format!("no answer: {:?}", reply.error))?;
            let to = probe.to;
            ensure!(reply.peer == Some(to), "the client sees {:?} as its peer, not {to}", reply.peer);
            self.check_source(probe, from, answer.client)
                .with_context(|| format!("{} sees {} as its client", answer.server, answer.client))?;
            found.insert(answer.local);
        }
        Ok(found)
    }

    fn check_source(&self, probe: &Probe, from: &Host, seen: SocketAddr) -> Result<()> {
        let right = match probe.source {
            None => true,
            Some(Source::Client) => from.owns(seen.ip()),
            Some(Source::Node(node)) => self.cluster.node(node)?.owns(seen.ip()),
            Some(Source::Hairpin) if self.by_socket(probe.from, probe.to) => from.owns(seen.ip()),
            Some(Source::Hairpin) => seen.ip() == probe.to.ip(),
        };
        ensure!(right, "not {:?}", probe.source);
        Ok(())
    }
}

/// The sockets by which a probe is tried.
fn protocols(probe: &Probe) -> &'static [By] {
    let is_answered = matches!(
        probe.expect,
        Expect::Answers(_)
            | Expect::SessionAffinity(..)
            | Expect::Repicked(..)
            | Expect::NoLocalEndpoints
            | Expect::Denied
    );
    // An unconnected UDP socket does not get ICMP errors, so rejects are for connected ones.
    let reports_all =
        is_answered || (matches!(probe.expect, Expect::Refused) && node_of(probe.from).is_none());
    match probe.protocol {
        Protocol::Tcp => &[By::Tcp],
        _ if is_answered && reports_all => &[By::Udp, By::ConnectedUdp],
        _ => &[By::ConnectedUdp],
    }
}

fn fails(call: &Call<'_>, error: &str) -> Result<()> {
    let reply = call.clone().timeout(DROPPED).once()?;
    ensure!(reply.error.as_deref() == Some(error), "{reply:?} instead of {error}");
    Ok(())
}

fn ping(from: &Host, probe: &Probe) -> Result<()> {
    let is_answered = from.ping(probe.to.ip(), PING)?;
    ensure!(is_answered == matches!(probe.expect, Expect::Echo), "answered: {is_answered}");
    Ok(())
}
