//! A run: each step goes to the program in the kernel and to the core, and both must agree.

mod chance;
mod translated;

use std::collections::HashMap;

use anyhow::Result;
use proxy_common::{
    decide::{Completion, FlowTables as _, RouteKind, Verdict},
    layout::{
        counter::Counter,
        flow::{Flow, FlowDraft, FlowKey, LookupPoint},
        fragment::{FragmentKey, MAX_QUEUED},
    },
    packet::{ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_SCTP, PROTOCOL_TCP, Part, timestamp},
};

use super::{
    comparison::{Comparison, Met},
    oracle::{self, Read, results},
    shape::Shape,
    steps::{self, Segment, Step, What, error},
};
use crate::{
    Device, Frame, Kernel, PacketFamily, Transport,
    sys::{Around, Kind},
};

/// A frame as each side sees it: they differ in the source ports that each chose by chance.
#[derive(Clone)]
struct Both {
    kernel: Frame,
    native: Frame,
}

/// Counted where the reply is sent.
const REPLY_FILTER: [Counter; 7] = [
    Counter::NoEndpoints,
    Counter::UndefinedPort,
    Counter::EchoReply,
    Counter::FlowReset,
    Counter::HopLimit,
    Counter::TooBig,
    Counter::ReplyToNode,
];

/// A step's outcome: in words how the sides differ.
pub(super) type Agreed = Result<(), String>;

pub(super) struct Run<'r, 'a, F: PacketFamily> {
    comparison: &'r mut Comparison<'a, F>,
    /// The inputs of programs, by step.
    given: HashMap<usize, Both>,
    /// Their outputs, if translated.
    sent: HashMap<usize, Both>,
    /// How many fragments the programs hold, by packet.
    held: HashMap<FragmentKey<F>, u32>,
    met: &'r mut Met,
}

/// One packet on its way.
struct Sent<'s> {
    number: usize,
    program: &'static str,
    device: Device,
    /// The device by which a packet came in that leaves; `None`: it is the node's own.
    came_in: Option<Device>,
    both: Option<Both>,
    shape: &'s Shape,
}

impl<'r, 'a, F: PacketFamily> Run<'r, 'a, F> {
    pub(super) fn new(comparison: &'r mut Comparison<'a, F>, met: &'r mut Met) -> Self {
        Self { comparison, given: HashMap::new(), sent: HashMap::new(), held: HashMap::new(), met }
    }

    /// Takes a step on both sides.
    pub(super) fn step(&mut self, number: usize, step: &Step) -> Result<Agreed> {
        let Comparison { kernel, native, backends, .. } = &mut *self.comparison;
        match step {
            Step::ReleaseBackend(which) => {
                let id = backends[which % backends.len()];
                kernel.release_backend(id)?;
                native.alive.remove(&id);
            }
            Step::Revive(which) => {
                let id = backends[which % backends.len()];
                kernel.revive(id, native)?;
                native.alive.insert(id);
            }
            Step::Wait(jiffies) => {
                kernel.age_flows::<F>(*jiffies)?;
                native.now.set(native.now.get().wrapping_add(*jiffies));
            }
            Step::Forget(which, part) => self.forget(*which, *part)?,
            Step::Packet { program, device, came_in, what, shape } => {
                let with_flags = |mut frame: Frame, Segment { flags, skew }: Segment| {
                    if let Transport::Tcp(_) = frame.transport {
                        frame.transport = Transport::Tcp(flags);
                        frame.skew = skew;
                    }
                    frame
                };
                let each = |both: &Both, change: &dyn Fn(&Frame) -> Frame| Both {
                    kernel: change(&both.kernel),
                    native: change(&both.native),
                };
                let both = match what {
                    What::Request(frame) => Some(Both { kernel: frame.clone(), native: frame.clone() }),
                    What::Answer { to, segment } => {
                        let Some(sent) = self.sent.get(to) else { return Ok(Ok(())) };
                        let answer =
                            |frame: &Frame| Frame { hop_limit: 60, ..with_flags(frame.reply(), *segment) };
                        Some(each(sent, &answer))
                    }
                    What::Again { of, segment } => {
                        let Some(given) = self.given.get(of) else { return Ok(Ok(())) };
                        Some(each(given, &|frame| with_flags(frame.clone(), *segment)))
                    }
                    What::Back { of } => {
                        let Some(given) = self.given.get(of) else { return Ok(Ok(())) };
                        Some(each(given, &Frame::reply))
                    }
                    What::Garbage(_) | What::Error { .. } => None,
                };
                if let Some(both) = &both {
                    self.given.insert(number, both.clone());
                }
                let (for_kernel, for_native) = match (&both, what) {
                    (Some(both), _) => (both.kernel.build()?, both.native.build()?),
                    (None, What::Garbage(bytes)) => (bytes.clone(), bytes.clone()),
                    (None, What::Error { about, from, which, quoted }) => {
                        let Some(about) = self.sent.get(about) else { return Ok(Ok(())) };
                        let error = |about| error::<F>(about, *from, *which, *quoted);
                        (error(&about.kernel)?, error(&about.native)?)
                    }
                    (None, _) => return Ok(Ok(())),
                };
                // A frame without a packet has no bytes to change.
                let shape = if matches!(what, What::Garbage(_)) { &Shape::Whole } else { shape };
                let skip = if program.contains("_l3_") { ETHERNET } else { 0 };
                let trim = |frame: Vec<u8>| shape.apply(frame).split_off_at(skip);
                let sent = Sent { number, program, device: *device, came_in: *came_in, both, shape };
                return self.packet(&sent, &trim(for_kernel), &trim(for_native));
            }
        }
        Ok(Ok(()))
    }

    /// Removes entries of the flow of a step, on both sides.
    fn forget(&mut self, step: usize, part: steps::Part) -> Result<()> {
        let Some(given) = self.given.get(&step) else { return Ok(()) };
        let tuple = F::tuple(given.kernel.src, given.kernel.dst);
        let key = FlowKey::new(tuple, given.kernel.transport.protocol(), LookupPoint::Forward);
        let (Some(kernel), Some(native)) =
            (self.comparison.kernel.flow(&key)?, self.comparison.native.flow_entry(&key))
        else {
            return Ok(());
        };
        let opposite = |flow: &Flow<F>| {
            let mut draft = FlowDraft::default();
            draft.begin(&key, flow);
            draft.make_opposite();
            draft.opposite_key
        };
        let (gone, gone_natively) = (opposite(&kernel), opposite(&native));
        let (forward, reverse) = (part != steps::Part::Reverse, part != steps::Part::Forward);
        self.comparison
            .kernel
            .retain_flows::<F>(|other| !(forward && *other == key || reverse && *other == gone))?;
        let natively = [(forward, &key), (reverse, &gone_natively)];
        for (_, key) in natively.into_iter().filter(|(is_gone, _)| *is_gone) {
            self.comparison.native.remove_flow(key);
            self.comparison.native.remove_pending(key);
        }
        Ok(())
    }

    fn packet(&mut self, sent: &Sent<'_>, input: &[u8], natively: &[u8]) -> Result<Agreed> {
        let Sent { number, program, device, came_in, shape, .. } = *sent;
        let ifindex = device.index()?;
        let kind = Kernel::kind(program);
        let (pass, drop, redirect) = results(kind);
        if self.comparison.kernel.possible(&[program])?.is_empty() {
            return Ok(Ok(()));
        }
        let came_in = match came_in {
            Some(device) if self.comparison.takes_ingress => device.index()?,
            _ => 0,
        };
        let around = Around { ifindex, came_in, ..Around::default() };
        let run = match self.comparison.kernel.run_around(program, input, around) {
            Ok(run) => run,
            // The kernel itself refuses to make a packet of less than its headers.
            Err(_) if input.len() < ETHERNET + F::HEADER => return Ok(Ok(())),
            Err(error) => return Err(error),
        };
        let network = if program.contains("_l3_") { 0 } else { ETHERNET };
        let Some(read) = self.read(sent, natively, network) else {
            let is_same = run.result == pass && run.packet == input;
            return Ok(agree(is_same, || format!("not left alone: {run:02x?}")));
        };
        let dissected = read.dissected;
        if oracle::is_held(self.comparison.native, program, natively, &read) {
            let held = self.held.entry(dissected.fragment_key()).or_default();
            if *held < MAX_QUEUED {
                *held += 1;
                return Ok(agree(run.result == drop, || format!("not held: {run:02x?}")));
            }
        }
        let is_first = read.is_slow_path && dissected.part == Part::First;
        if is_first && program.ends_with("_ingress") && self.held.remove(&dissected.fragment_key()).is_some()
        {
            return Ok(agree(run.result == drop, || format!("not released: {run:02x?}")));
        }
        if read.completion != Completion::Complete {
            let is_same = run.result == pass && run.packet == input;
            return Ok(agree(is_same, || format!("not left alone: {run:02x?}")));
        }
        let packet = dissected.packet;
        let chance = self.choose_as_the_kernel_did(number, &packet)?;
        self.comparison.native.fixed_random.set(Some(chance));
        let is_xdp = kind == Kind::Xdp;
        self.comparison.native.size.set(oracle::size::<F>(kind, natively, network));
        self.comparison.native.came_in.set(if is_xdp { 0 } else { came_in });
        self.comparison.native.leaves.set(if is_xdp { 0 } else { ifindex });
        let dated = if packet.protocol == PROTOCOL_TCP && !packet.follows {
            timestamp(natively, packet.transport, packet.is_syn())
        } else {
            0
        };
        self.comparison.native.timestamp.set(dated);
        let before = self.comparison.native.counts.borrow().clone();
        let (verdict, out) = oracle::decide(self.comparison.native, program, ifindex, &packet);
        *self.met.entry(format!("{program}: {verdict:?}")).or_default() += 1;
        let differs = |how: &str| format!("{how}: natively {verdict:?} {out:?}, in the kernel {run:02x?}");
        // XDP sends only back by the device itself, and knows neither bridges nor hairpin.
        let is_answer = matches!(
            verdict,
            Verdict::Reject | Verdict::Reset | Verdict::Echo | Verdict::TimeExceeded | Verdict::TooBig
        );
        if is_xdp && verdict != Verdict::Drop {
            // tc will count it.
            let mut counts = self.comparison.native.counts.borrow_mut();
            for counter in REPLY_FILTER {
                counts.insert(counter, before.get(&counter).copied().unwrap_or(0));
            }
        }
        let handed_over = is_xdp
            && match verdict {
                Verdict::Redirect => out.route.kind != RouteKind::Neighbour || out.route.ifindex != ifindex,
                Verdict::Bridge | Verdict::Hairpin => true,
                _ => is_answer,
            };
        if verdict == Verdict::Pass || handed_over {
            let is_same = run.result == pass && run.packet == input;
            return Ok(agree(is_same, || differs("not left alone")));
        }
        if verdict == Verdict::Drop {
            return Ok(agree(run.result == drop, || differs("not dropped")));
        }
        if is_answer {
            // Other tests check generated replies. Too many at once are dropped.
            let is_right = match (run.result == redirect, &sent.both) {
                (true, Some(both)) if shape.is_sound() => {
                    oracle::is_answered(&both.kernel, &run.packet, network)
                }
                (true, _) => true,
                (false, _) => run.result == drop,
            };
            return Ok(agree(is_right, || differs("not answered")));
        }
        let is_redirected = matches!(verdict, Verdict::Hairpin) || verdict == Verdict::Redirect;
        let result = if is_redirected { redirect } else { pass };
        if run.result != result {
            return Ok(Err(differs("another result")));
        }
        // An Ethernet header was put in front for the redirect.
        let added = if network == 0 && verdict == Verdict::Redirect { ETHERNET } else { 0 };
        Ok(self
            .translated(sent, input, network, &dissected, verdict, &out, &run.packet[added..])
            .map_err(|how| differs(&how)))
    }

    /// A program's view of the headers, if the packet concerns it.
    fn read(&self, sent: &Sent<'_>, input: &[u8], network: usize) -> Option<Read<F>> {
        let is_xdp = Kernel::kind(sent.program) == Kind::Xdp;
        if !self.is_ours(sent, input) {
            return None;
        }
        // SCTP's checksum is of the whole packet: tc's affair.
        let read = oracle::read::<F>(self.comparison.native, sent.program, input, network)?;
        (!is_xdp || read.dissected.packet.protocol != PROTOCOL_SCTP).then_some(read)
    }

    /// Whether it is a frame of the family, and not for another host.
    fn is_ours(&self, sent: &Sent<'_>, input: &[u8]) -> bool {
        let Some(&[first, second]) = input.get(12..14).and_then(|bytes| bytes.first_chunk()) else {
            return false;
        };
        let ether_type = u16::from_be_bytes([first, second]);
        let ours = if F::IS_V4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        // Packets between other hosts, as the kernel sees them: it looks for MACs even where there are none.
        let is_overheard = input[0] & 1 == 0 && input[..6] != sent.device.mac();
        let overhears =
            matches!(sent.program, "uplink_ingress" | "uplink_l3_ingress") && sent.device != Device::PortC;
        ether_type == ours && !(is_overheard && overhears)
    }
}

fn agree(is_so: bool, otherwise: impl FnOnce() -> String) -> Agreed {
    if is_so { Ok(()) } else { Err(otherwise()) }
}

/// `Vec::split_off` of the rest, or nothing if it is shorter.
trait SplitOffAt {
    fn split_off_at(self, at: usize) -> Self;
}

impl SplitOffAt for Vec<u8> {
    fn split_off_at(mut self, at: usize) -> Self {
        self.split_off(at.min(self.len()))
    }
}
