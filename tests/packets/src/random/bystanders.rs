//! Packets of no frontend and no flow: every program leaves them unchanged.
//!
//! The conditions are checked without the core: no packet has the ends of a flow, and none is sent to a frontend.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use proxy_common::{
    decide::memory::MemoryTables,
    layout::{
        counter::Counter,
        flow::{FlowKey, Tuple},
        frontend::FrontendKey,
    },
    packet::ETHERNET,
};

use super::{Plan, fixture::add_services, steps::Random};
use crate::{
    Device, Frame, Host, IcmpError, Kernel, Node, Options, PacketFamily, SNAT, Transport, fragments,
    icmp_error, sys::Kind, talk, with_extensions,
};

/// The result.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    /// Packets.
    pub packets: usize,
    /// How often a program had one of them.
    pub runs: usize,
    /// Flows that were open meanwhile.
    pub flows: usize,
    /// How long it took, without making the node.
    pub took: Duration,
}

const HOOKS: [(&str, Device); 11] = [
    ("pod_ingress", Device::PodA),
    ("pod_ingress", Device::PodB),
    ("pod_ingress", Device::PortC),
    ("pod_egress", Device::PodA),
    ("uplink_ingress", Device::Uplink),
    ("uplink_ingress", Device::PortC),
    ("uplink_xdp", Device::Uplink),
    ("uplink_xdp_frags", Device::Uplink),
    ("uplink_egress", Device::Uplink),
    ("uplink_l3_ingress", Device::Uplink),
    ("uplink_l3_egress", Device::Uplink),
];

/// Makes a node with live flows, in a namespace that the calling thread enters, and runs its programs on such packets.
///
/// # Errors
/// When a program does anything to one of them; the message shows how to repeat it.
pub fn bystanders<F: PacketFamily>(plan: Plan) -> Result<Passed> {
    let node = Node::with(Options::default(), |v4, v6| {
        add_services(v4);
        add_services(v6);
    })?;
    let Node { kernel, v4, v6 } = node;
    populate::<F>(&kernel)?;
    let flows = kernel.flows::<F>()?;
    let begin = Instant::now();
    let runs = match F::NUMBER {
        4 => Comparison::<F>::new(&kernel, frontends(&v4))?.run(plan)?,
        _ => Comparison::<F>::new(&kernel, frontends(&v6))?.run(plan)?,
    };
    let after = kernel.flows::<F>()?;
    ensure!(after.len() == flows.len(), "{} flow entries became {}", flows.len(), after.len());
    Ok(Passed { packets: plan.packets, runs, flows: flows.len() / 2, took: begin.elapsed() })
}

/// Opens flows of every kind, so that every filter matches.
fn populate<F: PacketFamily>(kernel: &Kernel) -> Result<()> {
    let (pod, uplink) = (("pod_ingress", Device::PodA), ("uplink_ingress", Device::Uplink));
    let (to_pod, out) = (("pod_egress", Device::PodA), ("uplink_egress", Device::Uplink));
    for port in 40_000..40_200 {
        for transport in [Transport::Tcp(16), Transport::Udp, Transport::Sctp(1)] {
            for (request, reply, client, frontend) in [
                (pod, to_pod, Host::PodA, Host::LocalVip.at::<F>(80)),
                (pod, to_pod, Host::PodA, Host::RemoteVip.at::<F>(80)),
                (pod, pod, Host::PodA, Host::HairpinVip.at::<F>(80)),
                (uplink, out, Host::Client, Host::Node.at::<F>(30_001)),
                (uplink, uplink, Host::Client, Host::Node.at::<F>(30_002)),
            ] {
                let frame = Frame::new(client.at::<F>(port), frontend, transport);
                if port % 4 == 0 {
                    talk::translated(kernel, request, &Frame { transport: first(transport), ..frame })?;
                } else {
                    talk::open(kernel, request, reply, &frame)?;
                }
            }
        }
    }
    Ok(())
}

fn first(transport: Transport) -> Transport {
    match transport {
        Transport::Tcp(_) => Transport::Tcp(2),
        other => other,
    }
}

/// Frontends in the maps: by address, port and protocol, and by address alone.
struct Frontends {
    ends: HashSet<(std::net::IpAddr, u16, u8)>,
    whole: HashSet<std::net::IpAddr>,
    in_range: HashSet<std::net::IpAddr>,
}

fn frontends<F: PacketFamily>(tables: &MemoryTables<F>) -> Frontends {
    let node = Host::Node.ip::<F>();
    let mut known = Frontends { ends: HashSet::new(), whole: HashSet::new(), in_range: HashSet::new() };
    for key in tables.frontends.keys() {
        if *key == FrontendKey::of_address(key.addr) {
            known.whole.insert(F::to_ip(&key.addr));
            continue;
        }
        let is_node_port = key.addr == F::UNSPECIFIED;
        let ip = if is_node_port { node } else { F::to_ip(&key.addr) };
        known.ends.insert((ip, u16::from_be(key.port), key.protocol));
    }
    known.in_range.extend(tables.service_addresses.iter().map(F::to_ip));
    known
}

struct Comparison<'k, F: PacketFamily> {
    kernel: &'k Kernel,
    frontends: Frontends,
    /// The ends of all flows, in either direction.
    flows: HashSet<(Tuple<F>, u8)>,
    hooks: Vec<(&'static str, Device)>,
}

impl<'k, F: PacketFamily> Comparison<'k, F> {
    fn new(kernel: &'k Kernel, frontends: Frontends) -> Result<Self> {
        let mut flows = HashSet::new();
        for (FlowKey { tuple, protocol, .. }, flow) in kernel.flows::<F>()? {
            for tuple in [tuple, flow.tuple] {
                flows.insert((tuple, protocol));
                flows.insert((tuple.reversed(), protocol));
            }
        }
        let possible = kernel.possible(&HOOKS.map(|(program, _)| program))?;
        let hooks = HOOKS.into_iter().filter(|(program, _)| possible.contains(program)).collect();
        Ok(Self { kernel, frontends, flows, hooks })
    }

    fn run(&self, plan: Plan) -> Result<usize> {
        let before = self.counters()?;
        let mut runs = 0;
        let (mut number, mut packets) = (plan.seed, 0);
        while packets < plan.packets {
            let mut random = Random::new(number);
            let (kept, pieces) = self.packet(&mut random)?;
            if pieces.len() > 1 {
                // The others may be held until it has been seen.
                self.check(("uplink_ingress", Device::Uplink), kept, &pieces[0], number)?;
            }
            for piece in &pieces {
                runs += self.passes(&mut random, kept, piece, number)?;
            }
            packets += pieces.len();
            number += 1;
        }
        let after = self.counters()?;
        ensure!(before == after, "something was counted: {before:?} became {after:?}");
        Ok(runs)
    }

    /// The counters of Services' packets.
    fn counters(&self) -> Result<Vec<(&'static str, u64)>> {
        let others = [Counter::FragmentUnknown];
        let counters = Counter::ALL.iter().filter(|counter| !others.contains(counter));
        counters.map(|counter| Ok((counter.name(), self.kernel.counter(*counter)?))).collect()
    }

    /// Runs programs on a frame; returns how many.
    fn passes(&self, random: &mut Random, kept: Kept, frame: &[u8], number: u64) -> Result<usize> {
        let mut runs = 0;
        for (program, device) in &self.hooks {
            // Each meets every third.
            if random.below(3) == 0 && !(kept.stays && program.ends_with("egress")) {
                self.check((program, *device), kept, frame, number)?;
                runs += 1;
            }
        }
        Ok(runs)
    }

    fn check(&self, (program, device): (&str, Device), kept: Kept, frame: &[u8], number: u64) -> Result<()> {
        let pass = if Kernel::kind(program) == Kind::Xdp { 2 } else { u32::MAX };
        // Programs of devices without Ethernet headers get none.
        let skip = if program.contains("_l3_") { ETHERNET.min(frame.len()) } else { 0 };
        let input = &frame[skip..];
        match self.kernel.run(program, input, device.index()?, 0) {
            Ok(run) => ensure!(
                run.result == pass && run.packet == input,
                "packet {number}: {program} on {input:02x?}\ngave {} with {:02x?}",
                run.result,
                run.packet
            ),
            // The kernel itself refuses to make a packet of less than its headers, and of some that contradict themselves.
            Err(_) if input.len() < ETHERNET + F::HEADER || kept.is_garbage => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// One packet of no Service, perhaps in fragments.
    fn packet(&self, random: &mut Random) -> Result<(Kept, Vec<Vec<u8>>)> {
        loop {
            let mut frame = self.frame(random);
            let kind = random.below(16);
            if kind == 0 {
                return Ok((Kept { stays: false, is_garbage: true }, vec![garbage(random)]));
            }
            let protocol = frame.transport.protocol();
            let tuple = F::tuple(frame.src, frame.dst);
            let is_ping = matches!(frame.transport, Transport::Echo(_));
            let (whole, ends) = (&self.frontends.whole, (frame.dst.ip(), frame.dst.port(), protocol));
            let is_asked = whole.contains(&frame.dst.ip()) || self.frontends.ends.contains(&ends);
            let asks = match frame.transport {
                Transport::Tcp(flags) => flags & 0x17 == 2,
                Transport::Sctp(chunk) => chunk == 1,
                _ => true,
            };
            if self.flows.contains(&(tuple, protocol)) || is_asked && asks {
                continue;
            }
            // Packets for a service's address that leave are stopped.
            let stays = self.frontends.in_range.contains(&frame.dst.ip());
            let kept = Kept { stays, is_garbage: false };
            // Fragments are queued only if they can be a Service's, and only until the first one comes.
            if kind < 4 {
                frame.payload = vec![random.below(256) as u8; 100 + random.below(3_000)];
                let bytes = self.disguised(random, frame.build()?, is_ping);
                return Ok((kept, fragments(&bytes, random.next() as u16, 512 + 8 * random.below(100))));
            }
            if kind == 4 {
                let error = random.of(&[
                    IcmpError::PortUnreachable,
                    IcmpError::TimeExceeded,
                    IcmpError::TooBig(1_300),
                ]);
                let from = random.of(&[Host::Gateway, Host::Client, Host::Remote, Host::PodB]).ip::<F>();
                let about = frame.build()?;
                let bytes = icmp_error(error, (from, frame.src.ip()), 60, &about, random.of(&[28, 48, 400]))?;
                return Ok((Kept { stays: true, ..kept }, vec![bytes]));
            }
            let mut bytes = self.disguised(random, frame.build()?, is_ping);
            if kind == 5 {
                let length = bytes.len();
                bytes.truncate(random.below(length + 1));
            }
            if kind == 6 && !F::IS_V4 {
                let types: Vec<_> = (0..=random.below(3)).map(|_| random.of(&[0, 60, 60])).collect();
                bytes = with_extensions(&bytes, &types);
            }
            if random.below(8) == 0 {
                bytes.resize(bytes.len() + random.below(40), 0xa5);
            }
            return Ok((kept, vec![bytes]));
        }
    }

    /// From a ping, perhaps a packet of another protocol.
    fn disguised(&self, random: &mut Random, mut bytes: Vec<u8>, is_ping: bool) -> Vec<u8> {
        let at = if F::IS_V4 { 23 } else { 20 };
        if is_ping && random.below(2) == 0 {
            // IGMP, IPIP, IPv6 in IP, GRE, ESP, AH is an extension header, OSPF, PIM, VRRP, experiments.
            bytes[at] = random.of(&[2, 4, 41, 47, 50, 89, 103, 112, 253]);
        }
        bytes
    }

    fn frame(&self, random: &mut Random) -> Frame {
        let (source, destination) = (self.end(random), self.end(random));
        let (flags, chunk) = (random.below(64) as u8, random.of(&[0, 1, 2, 3, 6, 7, 10, 14, 130]));
        let transport = match random.below(8) {
            0..3 => Transport::Tcp(random.of(&[2, 16, 18, 17, 4, 20, 24, flags])),
            3..5 => Transport::Udp,
            5 => Transport::Sctp(chunk),
            _ => Transport::Echo(random.below(2) == 0),
        };
        let mut frame = Frame::new(source, destination, transport);
        frame.hop_limit = random.of(&[64, 255, 2, 1]);
        frame.payload = vec![random.below(256) as u8; random.below(60)];
        frame.options = if F::IS_V4 { random.of(&[0, 0, 0, 4, 40]) } else { 0 };
        frame.initial = [random.next(), random.next()];
        frame
    }

    /// An address with a port of any class.
    fn end(&self, random: &mut Random) -> std::net::SocketAddr {
        let snat = *SNAT.start() + random.below(SNAT.len()) as u16;
        let port = match random.below(8) {
            0 => snat,
            1 => 30_000 + random.below(2_768) as u16,
            2 => random.of(&[80, 81, 443, 8080, 53, 22]),
            3 => 40_000 + random.below(200) as u16,
            4 => random.of(&[30_001, 30_002, 30_006, 30_583]),
            _ => random.next() as u16,
        };
        let ip = match random.below(4) {
            0 => Host::Node.ip::<F>(),
            1 | 2 => random.of(&Host::all()).ip::<F>(),
            _ => anybody::<F>(random),
        };
        std::net::SocketAddr::new(ip, port)
    }
}

/// Further facts about a packet.
#[derive(Clone, Copy)]
struct Kept {
    /// It may not be about to leave.
    stays: bool,
    /// It may be no packet at all.
    is_garbage: bool,
}

/// Any address: multicast, link-local, private, public; in IPv6 often close to those of the node.
fn anybody<F: PacketFamily>(random: &mut Random) -> std::net::IpAddr {
    let word = random.next();
    if F::IS_V4 {
        let net = random.of(&[10, 192, 172, 203, 224, 169, 1 + (word >> 24) as u8 % 223]);
        let [_, b, c, d] = word.to_be_bytes();
        std::net::Ipv4Addr::new(net, b, c, d).into()
    } else {
        let net = random.of(&[0xfd00, 0x2001, 0xfe80, 0xff02, 0xfd12]);
        let rest = [(); 6].map(|()| random.next() as u16);
        let [b, c, d, e, f, g] = if random.below(2) == 0 { rest } else { [0x244, 0, 0, 0, 0, 0] };
        std::net::Ipv6Addr::new(net, b, c, d, e, f, g, word as u16).into()
    }
}

/// Bytes of another family, of none, or of nothing.
fn garbage(random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..14 + random.below(200)).map(|_| random.next() as u8).collect();
    let ether_type: u16 = random.of(&[0x0806, 0x8100, 0x88cc, 0x8847, 0x0800, 0x86dd, 0x88e5]);
    bytes[12..14].copy_from_slice(&ether_type.to_be_bytes());
    if bytes.len() > 24 {
        // Neither TCP nor UDP by chance, nor an extension header that leads there.
        let (v4, v6) = (ether_type == 0x0800, ether_type == 0x86dd);
        let protocol = if v4 { 23 } else { 20 };
        if v4 || v6 {
            bytes[protocol] = random.of(&[2, 4, 47, 50, 89, 99, 253]);
        }
    }
    bytes
}
