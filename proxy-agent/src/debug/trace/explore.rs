//! Runs the core for each backend that chance could choose: which one it will be cannot be foretold.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use proxy_common::{
    decide::{self, SocketClient, SocketOrigin, SocketVerdict, Step, Translation},
    layout::{
        config::Settings,
        flow::{Tuple, flags},
        id::Id,
        set::BackendSet,
        socket::SocketPeer,
    },
    packet::{PROTOCOL_UDP, Packet, tcp_flags},
};

use super::{
    Client, Question,
    answer::Verdict,
    routing::Routing,
    tables::{LiveTables, Way},
};
use crate::{
    datapath::{
        address::UserFamily,
        live::{LiveMaps, is_uplink},
    },
    debug::names::Names,
};

/// The core is run for so many backends of a set; more are only listed.
const MAX_RUNS: u32 = 1024;

/// Hop limit of the traced packet: the default of most systems.
const HOP_LIMIT: u8 = 64;

/// The traced program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// The socket hooks.
    Socket,
    /// The packet program at a pod's interface.
    Pod,
    /// The packet program at an uplink.
    Uplink,
    /// The same for packets that leave by it.
    Leaving,
}

impl Path {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Socket => "socket hook (connect, sendmsg)",
            Self::Pod => "packet program at the pod's interface",
            Self::Uplink => "packet program at the uplink",
            Self::Leaving => "packet program at the uplink it leaves by",
        }
    }
}

/// One run of the core.
#[derive(Clone, Debug)]
pub(super) struct Outcome<F: UserFamily> {
    pub(super) verdict: Verdict,
    /// With [`Verdict::Translate`]: the backend, and the source it sees.
    pub(super) backend: Option<SocketAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) steps: Vec<Step<F>>,
}

impl<F: UserFamily> Outcome<F> {
    fn set(&self) -> Option<BackendSet> {
        self.steps.iter().find_map(|step| match step {
            Step::BackendSet(_, set) => Some(*set),
            _ => None,
        })
    }

    pub(super) fn is_known_flow(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::KnownFlow(_)))
    }

    pub(super) fn is_kept(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Kept(_)))
    }

    /// It belongs to a reply, not to a request.
    pub(super) fn is_answer(&self) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(step, Step::KnownFlow(flow) if flow.flags & flags::REVERSE != 0))
    }

    pub(super) fn service(&self) -> Option<Id> {
        self.steps.iter().find_map(|step| match step {
            Step::KnownFlow(flow) => Some(flow.service),
            Step::Frontend(target) | Step::NodePort(target) | Step::ClusterIpFromOutside(target) => {
                Some(target.service())
            }
            _ => None,
        })
    }
}

/// All outcomes of a program, for every random choice.
pub(super) struct Explored<F: UserFamily> {
    pub(super) path: Path,
    /// One for each backend, or just one if there is nothing to choose.
    pub(super) outcomes: Vec<Outcome<F>>,
    /// The backends of the set: those that could be chosen, or could have been.
    pub(super) candidates: Vec<SocketAddr>,
}

impl<F: UserFamily> Explored<F> {
    pub(super) fn is_known_flow(&self) -> bool {
        self.outcomes.iter().any(Outcome::is_known_flow)
    }

    /// The verdict: translated, if it is for any backend.
    pub(super) fn verdict(&self) -> Verdict {
        let verdicts = || self.outcomes.iter().map(|outcome| outcome.verdict);
        let translated = verdicts().find(|verdict| *verdict == Verdict::Translate);
        translated.or_else(|| verdicts().next()).unwrap_or(Verdict::Pass)
    }

    /// In a few words.
    pub(super) fn summary(&self) -> String {
        match self.verdict() {
            Verdict::Translate if self.outcomes.iter().any(Outcome::is_kept) => {
                "would translate to the endpoint the client had".to_owned()
            }
            Verdict::Translate => {
                format!("would translate to one of {} backends", self.candidates.len().max(1))
            }
            Verdict::Pass => "would leave it alone".to_owned(),
            Verdict::Reject => "would reject it".to_owned(),
            Verdict::Drop => "would drop it".to_owned(),
        }
    }
}

/// A question and all that is needed to answer it.
pub(super) struct Explorer<'t, M, R> {
    pub(super) maps: &'t M,
    pub(super) routing: &'t R,
    pub(super) names: &'t Names,
    pub(super) settings: Settings,
    pub(super) question: &'t Question,
    pub(super) client: Client,
}

impl<M, R: Routing> Explorer<'_, M, R> {
    /// Runs a program's part of the core as often as needed.
    pub(super) fn explore<F: UserFamily>(&self, path: Path) -> Result<Explored<F>>
    where
        M: LiveMaps<F>,
    {
        let first = self.run::<F>(path, 0, false)?;
        if first.is_known_flow() {
            let set = self.run::<F>(path, 0, true)?.set().unwrap_or_default();
            let candidates = if first.is_answer() { Vec::new() } else { self.candidates(set) };
            return Ok(Explored { path, outcomes: vec![first], candidates });
        }
        let set = first.set().unwrap_or_default();
        if first.is_kept() {
            return Ok(Explored { path, outcomes: vec![first], candidates: self.candidates(set) });
        }
        let count = u64::from(set.count().min(MAX_RUNS));
        let mut outcomes = vec![first];
        for choice in 1..count {
            // The least number that chooses this slot; see `BackendSet::slot`.
            let random = (choice << 32).div_ceil(set.count().into()) as u32;
            outcomes.push(self.run(path, random, false)?);
        }
        Ok(Explored { path, outcomes, candidates: self.candidates(set) })
    }

    /// The result for a program that does not see the packet.
    pub(super) fn nothing<F: UserFamily>(&self, path: Path) -> Explored<F> {
        let outcome = Outcome { verdict: Verdict::Pass, backend: None, source: None, steps: Vec::new() };
        Explored { path, outcomes: vec![outcome], candidates: Vec::new() }
    }

    fn candidates<F: UserFamily>(&self, set: BackendSet) -> Vec<SocketAddr>
    where
        M: LiveMaps<F>,
    {
        let slots = set.base()..set.base().saturating_add(set.count());
        let backends = slots.filter_map(|slot| self.maps.backend(slot));
        let mut candidates: Vec<_> =
            backends.map(|backend| F::to_socket(&backend.addr, backend.port)).collect();
        candidates.sort();
        candidates.dedup();
        candidates
    }

    fn run<F: UserFamily>(&self, path: Path, random: u32, without_flows: bool) -> Result<Outcome<F>>
    where
        M: LiveMaps<F>,
    {
        let Question { from, to, protocol, .. } = *self.question;
        let way = if path == Path::Leaving { self.way() } else { Way::default() };
        let tables = LiveTables::new(self.maps, self.routing, self.settings, random, without_flows, way);
        let addr = |ip| F::from_ip(ip).context("an address of the other family");
        let (src, dst) = (addr(from.ip())?, addr(to.ip())?);
        if path == Path::Socket {
            let origin = if self.client == Client::Node { SocketOrigin::Node } else { SocketOrigin::Pod };
            // Like most sockets: not bound to an address yet.
            let asking = SocketClient { origin, netns: self.netns(&src), bound: F::UNSPECIFIED };
            let mut peer = SocketPeer::default();
            let verdict =
                decide::connect(&tables, &dst, to.port().to_be(), protocol, &asking, &mut peer).into();
            let backend = (verdict == Verdict::Translate).then(|| F::to_socket(&peer.addr, peer.port));
            let source = backend.and_then(|backend| self.socket_source(backend.ip()));
            return Ok(Outcome { verdict, backend, source, steps: tables.into_steps() });
        }
        let packet = Packet {
            tuple: Tuple { src, dst, sport: from.port().to_be(), dport: to.port().to_be() },
            protocol,
            // An SCTP INIT is like a SYN.
            tcp_flags: if protocol == PROTOCOL_UDP { 0 } else { tcp_flags::SYN },
            hop_limit: HOP_LIMIT,
            sequence: 0,
            acknowledgment: 0,
            follows: false,
            transport: 0,
        };
        let ifindex = self.ifindex(path);
        let mut out = Translation::default();
        let verdict = match path {
            Path::Leaving => decide::uplink_egress(&tables, &packet, &mut out),
            Path::Uplink => decide::uplink_ingress(&tables, &packet, ifindex, &mut out),
            Path::Pod | Path::Socket => decide::pod_ingress(&tables, &packet, ifindex, &mut out),
        };
        let verdict = verdict.into();
        let is_translated = verdict == Verdict::Translate;
        Ok(Outcome {
            verdict,
            backend: is_translated.then(|| F::to_socket(&out.to.dst, out.to.dport)),
            source: is_translated.then(|| F::to_ip(&out.to.src)),
            steps: tables.into_steps(),
        })
    }

    /// Cookie of the client's network namespace; 0 if it is not known.
    fn netns<F: UserFamily>(&self, addr: &F::Addr) -> u64
    where
        M: LiveMaps<F>,
    {
        if self.client == Client::Node {
            return self.maps.node_netns();
        }
        let found = self.maps.netns().iter().find(|(_, known)| F::same(known, addr));
        found.map_or(0, |(cookie, _)| *cookie)
    }

    /// Whether an untranslated packet leaves this node by an uplink.
    pub(super) fn leaves<F: UserFamily>(&self) -> bool
    where
        M: LiveMaps<F>,
    {
        let hop = self.routing.lookup(None, None, self.question.to.ip());
        let device = hop.filter(|hop| !hop.is_local).and_then(|hop| self.maps.devices().get(&hop.ifindex));
        self.client != Client::Outside && device.is_some_and(is_uplink)
    }

    /// The way of a packet that leaves.
    fn way<F: UserFamily>(&self) -> Way
    where
        M: LiveMaps<F>,
    {
        let came_in = match self.client {
            Client::Node => 0,
            Client::Pod => self.ifindex(Path::Pod),
            Client::Outside => self.ifindex(Path::Uplink),
        };
        let leaves = self.routing.lookup(None, None, self.question.to.ip()).map_or(0, |hop| hop.ifindex);
        Way { came_in, leaves }
    }

    /// The source of a socket: its own, or the one the kernel chooses for the backend.
    fn socket_source(&self, backend: IpAddr) -> Option<IpAddr> {
        let from = self.question.from.ip();
        if from.is_loopback() {
            self.routing.lookup(None, None, backend).and_then(|hop| hop.source)
        } else {
            Some(from)
        }
    }

    /// The interface by which the client's packets come: the one that leads to it.
    fn ifindex<F: UserFamily>(&self, path: Path) -> u32
    where
        M: LiveMaps<F>,
    {
        let devices = self.maps.devices();
        let towards = self.routing.lookup(None, None, self.question.from.ip()).map_or(0, |hop| hop.ifindex);
        let fits = |index: &u32| devices.get(index).is_some_and(|d| is_uplink(d) == (path == Path::Uplink));
        if fits(&towards) {
            return towards;
        }
        // A port of the bridge that leads to the pod (all are treated alike), or any uplink.
        let likely = devices.iter().filter(|(index, device)| {
            fits(index) && (path == Path::Uplink || (towards != 0 && device.bridge == towards))
        });
        likely.map(|(index, _)| *index).min().unwrap_or(towards)
    }
}

impl From<SocketVerdict> for Verdict {
    fn from(verdict: SocketVerdict) -> Self {
        match verdict {
            SocketVerdict::Pass => Self::Pass,
            SocketVerdict::Translate => Self::Translate,
            SocketVerdict::Reject => Self::Reject,
            SocketVerdict::Unreachable | SocketVerdict::Denied => Self::Drop,
        }
    }
}

impl From<decide::Verdict> for Verdict {
    fn from(verdict: decide::Verdict) -> Self {
        use decide::Verdict as Core;
        match verdict {
            Core::Pass => Self::Pass,
            Core::ToStack | Core::Redirect | Core::Divert | Core::Bridge | Core::Hairpin => Self::Translate,
            Core::Reject | Core::Reset => Self::Reject,
            Core::Echo => Self::Pass,
            // A traced packet opens its flows at once.
            Core::Drop | Core::TimeExceeded | Core::TooBig | Core::NewFlow | Core::Open => Self::Drop,
        }
    }
}
