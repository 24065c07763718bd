//! The events of a run: a list of steps that depends on a number only, so that a run can be repeated, and shortened.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use super::{
    conversations::{conversation, own_conversation},
    shape::{DESTINATION, ETHERNET, HOP_BY_HOP, ROUTING, Shape},
};
use crate::{CLIENT_ISN, Device, Frame, Host, PacketFamily, SNAT, Transport};

/// Jiffies until a flow gives its port away: so many that no time that passes by itself in a run makes a difference.
pub(super) const IDLE: u32 = 4_000;

/// Jiffies that pass at once: past the time after which entries are refreshed, past that of unconfirmed flows, past [`IDLE`], past
/// TIME-WAIT, and past the lifetime of the node's own connections; never close to one of them, nor are their sums.
pub(super) const WAITS: [u32; 5] = [310, 900, 5_000, 30_000, 80_000];

/// A generator of random numbers (xorshift), good enough to choose packets.
pub(super) struct Random(u64);

impl Random {
    /// Neighbouring numbers give runs that have nothing in common.
    pub(super) fn new(number: u64) -> Self {
        // The mixing of splitmix64; xorshift must not begin with 0.
        let mixed = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) | 1)
    }

    pub(super) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit.max(1)
    }

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// One step. Steps that name another one by its number do nothing if that one came to nothing.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A program gets a frame.
    Packet {
        program: &'static str,
        device: Device,
        /// The device by which it came in, if it leaves and is not the node's own.
        came_in: Option<Device>,
        what: What,
        shape: Shape,
    },
    /// The backend with this number (modulo their count) no longer serves.
    ReleaseBackend(usize),
    /// It serves again.
    Revive(usize),
    /// This many jiffies pass.
    Wait(u32),
    /// The map forgets entries of the flow that the packet of a step belonged to.
    Forget(usize, Part),
}

/// Which entries of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Both,
    Forward,
    Reverse,
}

/// Flags of a frame with TCP, and how far sequence and acknowledgment number are from those behind the handshake.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) flags: u8,
    pub(super) skew: [u32; 2],
}

/// Which frame.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// A new one.
    Request(Frame),
    /// The reply to the output for the frame of a step.
    Answer { to: usize, segment: Segment },
    /// The frame of a step again.
    Again { of: usize, segment: Segment },
    /// The reply to the frame of a step as it was.
    Back { of: usize },
    /// An ICMP error about the output for the frame of a step, from this host: which of the family's errors, and how many
    /// bytes of the packet it quotes at most.
    Error { about: usize, from: Host, which: usize, quoted: usize },
    /// Bytes, whatever they are.
    Garbage(Vec<u8>),
}

pub(super) const PROGRAMS: [(&str, Device); 12] = [
    ("pod_ingress", Device::PodA),
    ("pod_ingress", Device::PodB),
    ("pod_ingress", Device::PortC),
    ("pod_egress", Device::PodA),
    ("uplink_ingress", Device::Uplink),
    ("uplink_ingress", Device::PortC),
    ("uplink_xdp", Device::Uplink),
    ("uplink_xdp_frags", Device::Uplink),
    ("uplink_egress", Device::Uplink),
    ("uplink_egress", Device::Uplink),
    ("uplink_l3_ingress", Device::Uplink),
    ("uplink_l3_egress", Device::Uplink),
];

const ANSWERED: [(&str, Device); 6] = [
    ("pod_ingress", Device::PodA),
    ("pod_egress", Device::PodA),
    ("uplink_ingress", Device::Uplink),
    ("uplink_xdp", Device::Uplink),
    ("uplink_egress", Device::Uplink),
    ("uplink_l3_egress", Device::Uplink),
];

pub(super) const PARTS: [Part; 3] = [Part::Both, Part::Forward, Part::Reverse];

/// The steps of a run.
pub(super) fn steps<F: PacketFamily>(random: &mut Random, count: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    while steps.len() < count {
        if random.below(12) == 0 {
            conversation::<F>(random, &mut steps);
        } else if random.below(60) == 0 {
            own_conversation::<F>(random, &mut steps);
        } else {
            let number = steps.len();
            steps.push(step::<F>(random, number));
        }
    }
    steps
}

fn step<F: PacketFamily>(random: &mut Random, number: usize) -> Step {
    match random.below(200) {
        0 => Step::ReleaseBackend(random.below(256)),
        1 => Step::Revive(random.below(256)),
        2 => Step::Wait(random.of(&WAITS)),
        3 => Step::Forget(random.below(number), random.of(&PARTS)),
        _ => packet::<F>(random, number),
    }
}

/// Mostly of a connection in progress, sometimes forged by others.
pub(super) fn segment(random: &mut Random) -> Segment {
    let flags = random.of(&[16, 16, 16, 24, 18, 2, 17, 17, 4, 20, 0, 1, 3, 6]);
    let skew =
        [(); 2].map(|()| random.of(&[0, 0, 0, 0, 0, 1, 7, 1 << 15, 1 << 18, 1 << 21, u32::MAX, 1 << 31]));
    Segment { flags, skew }
}

/// Timestamps where Linux and BSD put them, and elsewhere; the client's clock is one of three.
pub(super) fn options(random: &mut Random, flags: u8) -> Vec<u8> {
    const SYN: u8 = 2;
    let time = random.of(&[100, 200, 300u32]).to_be_bytes();
    let dated = [&[8, 10][..], &time, &[0; 4]].concat();
    let layouts: [&[u8]; 4] = if flags & SYN != 0 {
        [&[2, 4, 5, 180, 4, 2], &[2, 4, 5, 180, 1, 3, 3, 6, 1, 1], &[], &[1, 1]]
    } else {
        [&[1, 1], &[1, 1], &[1, 1, 1, 1], &[]]
    };
    let mut options = match random.below(6) {
        0 => Vec::new(),
        1 => vec![2, 4, 5, 180],
        _ => [random.of(&layouts), &dated].concat(),
    };
    // No-operation.
    options.resize(options.len().next_multiple_of(4), 1);
    options
}

fn packet<F: PacketFamily>(random: &mut Random, number: usize) -> Step {
    let (mut program, mut device) = random.of(&PROGRAMS);
    // Late packets are mostly of flows that are still young.
    let before = |random: &mut Random| number.saturating_sub(1 + random.below(100));
    let segment = segment(random);
    let what = match random.below(20) {
        0..10 => {
            let mut frame = request::<F>(random, program);
            if program == "uplink_l3_ingress" {
                // The test run reads the family from the client's address.
                frame.src.set_ip(Host::L3Client.ip::<F>());
            }
            What::Request(frame)
        }
        10..16 => {
            // Wherever answers are looked for, more often than elsewhere.
            if random.below(2) == 0 {
                (program, device) = random.of(&ANSWERED);
            }
            What::Answer { to: before(random), segment }
        }
        16 => What::Error {
            about: before(random),
            from: random.of(&[Host::Gateway, Host::PodB, Host::Remote]),
            which: random.below(4),
            quoted: random.of(&[28, 48, 200, 200]),
        },
        17 | 18 => What::Again { of: before(random), segment },
        _ => What::Garbage(garbage::<F>(random)),
    };
    let shape = match random.below(20) {
        0 | 1 => Shape::Padded(random.of(&[1, 2, 6, 46])),
        2 => Shape::Cut(random.below(110)),
        3 => Shape::Tagged,
        4 => Shape::Overheard,
        7 | 8 => Shape::Fragment { is_first: random.below(2) == 0 },
        9 if !F::IS_V4 => {
            let headers =
                (0..=random.below(3)).map(|_| random.of(&[HOP_BY_HOP, DESTINATION, ROUTING])).collect();
            Shape::Extended(headers)
        }
        // Replies depend on ports that each side chose for itself.
        5 | 6 if matches!(&what, What::Request(frame) if !is_by_chance::<F>(frame)) => {
            let changes = 1 + random.below(3);
            let noise: Vec<_> = (0..changes).map(|_| (random.below(64), 1 << random.below(8))).collect();
            Shape::Noise(noise)
        }
        _ => Shape::Whole,
    };
    let is_leaving = program.ends_with("egress");
    let came_in = random.of(&[None, Some(Device::Uplink), Some(Device::PodA)]).filter(|_| is_leaving);
    Step::Packet { program, device, came_in, what, shape }
}

/// An ICMP error about a frame, as a router or the receiver makes it.
pub(super) fn error<F: PacketFamily>(
    about: &Frame,
    from: Host,
    which: usize,
    quoted: usize,
) -> anyhow::Result<Vec<u8>> {
    let bytes = about.build()?;
    let quote = &bytes[ETHERNET..bytes.len().min(ETHERNET + quoted)];
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(about.from, about.to);
    match (from.ip::<F>(), about.src.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            // Port and host unreachable, fragmentation needed, time exceeded (RFC 792).
            let (kind, code) = [(3, 3), (3, 1), (3, 4), (11, 0)][which];
            let icmp = builder.ipv4(src.octets(), dst.octets(), 60).icmpv4_raw(kind, code, [0, 0, 5, 0]);
            icmp.write(&mut frame, quote)?;
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            // Port and address unreachable, packet too big, time exceeded (RFC 4443).
            let (kind, code) = [(1, 4), (1, 3), (2, 0), (3, 0)][which];
            let icmp = builder.ipv6(src.octets(), dst.octets(), 60).icmpv6_raw(kind, code, [0, 0, 5, 0]);
            icmp.write(&mut frame, quote)?;
        }
        _ => anyhow::bail!("two families"),
    }
    Ok(frame)
}

pub(super) fn request<F: PacketFamily>(random: &mut Random, program: &str) -> Frame {
    const SOURCES: [Host; 8] = [
        Host::PodA,
        Host::PodA,
        Host::PodB,
        Host::PodC,
        Host::Client,
        Host::Client,
        Host::Remote,
        Host::L3Client,
    ];
    const VIPS: [Host; 17] = [
        Host::LocalVip,
        Host::LocalVip2,
        Host::RemoteVip,
        Host::HairpinVip,
        Host::BridgeVip,
        Host::UnresolvedVip,
        Host::EmptyVip,
        Host::OddVip,
        Host::SpreadVip,
        Host::AffinityVip,
        Host::LocalOnlyVip,
        Host::NoLocalVip,
        Host::GuardedVip,
        Host::OwnVip,
        Host::L3Vip,
        Host::GuardedIp,
        Host::OpenIp,
    ];
    const NODE_PORTS: [u16; 14] = [
        30_001, 30_002, 30_003, 30_005, 30_006, 30_008, 30_583, 30_590, 30_600, 30_610, 30_620, 30_640,
        30_999, 22,
    ];
    const OTHERS: [(Host, u16); 7] = [
        (Host::GuardedIp, 81),
        (Host::LocalVip, 81),
        (Host::SpreadVip, 81),
        (Host::OtherNode, 30_001),
        (Host::Client, 443),
        (Host::PodB, 8080),
        (Host::UnallocatedVip, 80),
    ];
    let mut source = random.of(&SOURCES);
    let (host, port) = match random.below(16) {
        0..8 => (random.of(&VIPS), 80),
        8..13 => (Host::Node, random.of(&NODE_PORTS)),
        13 => {
            // No client has a flow with the gateway, so this port has none, whatever ports flows were given.
            source = Host::Gateway;
            (Host::Node, random.of(&[*SNAT.start(), 23_456, *SNAT.end()]))
        }
        _ => random.of(&OTHERS),
    };
    let flags = random.of(&[0, 1, 3, 6, 20, 24]);
    let (chunk, is_reply) = (random.of(&[0, 2, 6, 14]), random.below(4) == 0);
    let transport = random.of(&[
        Transport::Tcp(2),
        Transport::Tcp(2),
        Transport::Tcp(16),
        Transport::Tcp(17),
        Transport::Tcp(4),
        Transport::Tcp(18),
        Transport::Tcp(flags),
        Transport::Udp,
        Transport::Udp,
        if F::IS_V4 { Transport::UdpUnchecked } else { Transport::Udp },
        Transport::Sctp(1),
        Transport::Sctp(chunk),
        Transport::Echo(is_reply),
    ]);
    let source = source.at::<F>(random.of(&PORTS));
    let mut frame = Frame::new(source, host.at::<F>(port), transport);
    if program.ends_with("egress") && random.below(3) == 0 {
        frame = frame.between(frame.dst, frame.src);
        if random.below(3) == 0 {
            // From where connections to remote endpoints are sent, to one.
            frame.src = Host::Node.at::<F>(*SNAT.start() + random.of(&PORTS) % SNAT.len() as u16);
            frame.dst = random.of(&[Host::Remote, Host::Client]).at::<F>(8080);
        }
    }
    frame.initial[0] = random.of(&[CLIENT_ISN, CLIENT_ISN, 0x4000_0000, 0xffff_fff0]);
    if let Transport::Tcp(flags) = transport {
        frame.tcp_options = options(random, flags);
    }
    // A packet whose backend was chosen by chance must not be dropped for its hop limit: its choice would stay unknown.
    frame.hop_limit = if is_by_chance::<F>(&frame) { 64 } else { random.of(&[64, 64, 64, 64, 2, 1]) };
    frame.payload = vec![random.below(256) as u8; random.below(40)];
    frame.options = if F::IS_V4 { random.of(&[0, 0, 0, 4, 40]) } else { 0 };
    frame
}

/// Ports of clients.
pub(super) const PORTS: [u16; 3] = [40_000, 40_001, 0xffff];

/// Whether it is for a service with two backends.
fn is_by_chance<F: PacketFamily>(frame: &Frame) -> bool {
    let vips = [Host::SpreadVip, Host::AffinityVip, Host::LocalOnlyVip, Host::OwnVip, Host::OpenIp];
    let is_node_port = (30_583..=30_600).contains(&frame.dst.port());
    is_node_port || vips.iter().any(|vip| vip.ip::<F>() == frame.dst.ip())
}

/// Bytes that look like a packet of the family at first, or not even that.
fn garbage<F: PacketFamily>(random: &mut Random) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..random.below(120)).map(|_| random.next() as u8).collect();
    let (ether_type, version) = if F::IS_V4 { ([8, 0], 0x45) } else { ([0x86, 0xdd], 0x60) };
    if bytes.len() > 24 {
        bytes[12..14].copy_from_slice(&ether_type);
        bytes[14] = version;
        let protocol = random.of(&[6, 17, 132, 1, 58, 44, 0, 43, 60, 50]);
        bytes[if F::IS_V4 { 23 } else { 20 }] = protocol;
        if F::IS_V4 && random.below(2) == 0 {
            bytes[20..22].fill(0);
        }
    }
    bytes
}
