//! What happens in a run: a list of steps that depends on a number only, so that a run can be had again, and shortened.

use std::net::IpAddr;

use etherparse::PacketBuilder;

use crate::packets::{Device, Frame, Host, PacketFamily, SNAT, Transport};

/// A generator of random numbers (xorshift), good enough to choose packets.
pub(super) struct Random(u64);

impl Random {
    /// Neighbouring numbers give runs that have nothing in common.
    pub(super) fn new(number: u64) -> Self {
        // Of splitmix64; xorshift must not begin with 0.
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
    Packet { program: &'static str, device: Device, what: What, shape: Shape },
    /// The backend with this number (modulo what there is) no longer serves.
    Bury(usize),
    /// It serves again.
    Revive(usize),
    /// So many jiffies pass.
    Wait(u32),
    /// The flow map forgets both entries of the flow that the packet of a step belonged to.
    Forget(usize),
}

/// Which frame.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// A new one.
    Request(Frame),
    /// The answer to what became of the frame of a step, with these TCP flags if it is TCP.
    Answer { to: usize, flags: u8 },
    /// The frame of a step again, with these TCP flags if it is TCP.
    Again { of: usize, flags: u8 },
    /// An ICMP error about what became of the frame of a step, from this host: which of the family's errors, and how many
    /// bytes of the packet it quotes at most.
    Error { about: usize, from: Host, which: usize, quoted: usize },
    /// Bytes, whatever they are.
    Garbage(Vec<u8>),
}

/// What is done to the bytes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing.
    Whole,
    /// So many bytes follow the packet.
    Padded(usize),
    /// Cut off at this length, if it is longer.
    Cut(usize),
    /// A VLAN tag is in the frame.
    Tagged,
    /// It is for another host.
    Overheard,
    /// These extension headers follow the IPv6 header; an IPv4 packet stays as it is.
    Extended(Vec<u8>),
    /// Only its first fragment, or only the others.
    Fragment {
        /// The first?
        is_first: bool,
    },
    /// Bytes behind the Ethernet header are changed: where, modulo the length, and by which bits.
    Noise(Vec<(usize, u8)>),
}

const PROGRAMS: [(&str, Device); 12] = [
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

/// The steps of a run.
pub(super) fn steps<F: PacketFamily>(random: &mut Random, count: usize) -> Vec<Step> {
    (0..count).map(|number| step::<F>(random, number)).collect()
}

fn step<F: PacketFamily>(random: &mut Random, number: usize) -> Step {
    match random.below(200) {
        0 => Step::Bury(random.below(256)),
        1 => Step::Revive(random.below(256)),
        2 => Step::Wait(random.of(&[300, 3_000])),
        3 => Step::Forget(random.below(number)),
        _ => packet::<F>(random, number),
    }
}

fn packet<F: PacketFamily>(random: &mut Random, number: usize) -> Step {
    let (mut program, mut device) = random.of(&PROGRAMS);
    // Late packets are mostly of flows that are still young.
    let before = |random: &mut Random| number.saturating_sub(1 + random.below(100));
    let flags = random.of(&[16, 16, 16, 18, 2, 17, 4]);
    let what = match random.below(20) {
        0..10 => {
            let mut frame = request::<F>(random);
            if program == "uplink_l3_ingress" {
                // By the test run's first look the client's address says which family it is.
                frame.src.set_ip(Host::L3Client.ip::<F>());
            }
            What::Request(frame)
        }
        10..16 => {
            // Wherever answers are looked for, more often than elsewhere.
            if random.below(2) == 0 {
                (program, device) = random.of(&ANSWERED);
            }
            What::Answer { to: before(random), flags }
        }
        16 => What::Error {
            about: before(random),
            from: random.of(&[Host::Gateway, Host::PodB, Host::Remote]),
            which: random.below(4),
            quoted: random.of(&[28, 48, 200, 200]),
        },
        17 | 18 => What::Again { of: before(random), flags },
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
        // What answers look like depends on ports that each side chose for itself.
        5 | 6 if matches!(&what, What::Request(frame) if !is_by_chance::<F>(frame)) => {
            let changes = 1 + random.below(3);
            let noise: Vec<_> = (0..changes).map(|_| (random.below(64), 1 << random.below(8))).collect();
            Shape::Noise(noise)
        }
        _ => Shape::Whole,
    };
    Step::Packet { program, device, what, shape }
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

fn request<F: PacketFamily>(random: &mut Random) -> Frame {
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
        Host::StickyVip,
        Host::LocalOnlyVip,
        Host::WithheldVip,
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
    const OTHERS: [(Host, u16); 6] = [
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
            // Nobody has a flow with the gateway, so that this port is nobody's, whatever ports flows were given.
            source = Host::Gateway;
            (Host::Node, random.of(&[*SNAT.start(), 23_456, *SNAT.end()]))
        }
        _ => random.of(&OTHERS),
    };
    let (chunk, is_reply) = (random.of(&[0, 2, 6, 14]), random.below(4) == 0);
    let transport = random.of(&[
        Transport::Tcp(2),
        Transport::Tcp(2),
        Transport::Tcp(16),
        Transport::Tcp(17),
        Transport::Tcp(4),
        Transport::Tcp(18),
        Transport::Udp,
        Transport::Udp,
        if F::IS_V4 { Transport::UdpUnchecked } else { Transport::Udp },
        Transport::Sctp(1),
        Transport::Sctp(chunk),
        Transport::Echo(is_reply),
    ]);
    let mut frame =
        Frame::new(source.at::<F>(random.of(&[40_000, 40_001, 0xffff])), host.at::<F>(port), transport);
    // A packet whose backend was chosen by chance must not be dropped for its hop limit: its choice would stay unknown.
    frame.hop_limit = if is_by_chance::<F>(&frame) { 64 } else { random.of(&[64, 64, 64, 64, 2, 1]) };
    frame.payload = vec![random.below(256) as u8; random.below(40)];
    frame.options = if F::IS_V4 { random.of(&[0, 0, 0, 4, 40]) } else { 0 };
    frame
}

/// Is it for a service with two backends?
fn is_by_chance<F: PacketFamily>(frame: &Frame) -> bool {
    let vips = [Host::SpreadVip, Host::StickyVip, Host::LocalOnlyVip, Host::OwnVip, Host::OpenIp];
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

const ETHERNET: usize = 14;

// Numbers of IPv6's extension headers (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

fn is_ipv6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// Puts an extension header of 8 bytes behind the IPv6 header: `rest` is what follows its first byte.
fn extend(frame: &mut Vec<u8>, header: u8, rest: [u8; 7]) {
    const NEXT: usize = ETHERNET + 6;
    let next = std::mem::replace(&mut frame[NEXT], header);
    let transport = ETHERNET + 40;
    frame.splice(transport..transport, std::iter::once(next).chain(rest));
    set_length(frame);
}

/// Writes the length that a frame has into its network header, and that header's checksum.
fn set_length(frame: &mut [u8]) {
    let length = (frame.len() - ETHERNET) as u16;
    if is_ipv6(frame) {
        frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&(length - 40).to_be_bytes());
        return;
    }
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let header = &frame[ETHERNET..][..(frame[ETHERNET] & 0xf) as usize * 4];
    let sum: u32 = header.chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]]) as u32).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// Makes the first fragment of a packet, or what is left. Packets without so much in them become a fragment alone.
fn fragment(frame: &mut Vec<u8>, is_first: bool) {
    /// Bytes of the first fragment, in its unit of 8.
    const UNITS: u16 = 4;
    let is_ipv6 = is_ipv6(frame);
    let transport = ETHERNET + if is_ipv6 { 40 } else { (frame[ETHERNET] & 0xf) as usize * 4 };
    let cut = frame.len().min(transport + 8 * UNITS as usize);
    if is_first {
        frame.truncate(cut);
    } else {
        frame.drain(transport..cut);
    }
    if is_ipv6 {
        let place = if is_first { 1u16 } else { UNITS << 3 }.to_be_bytes();
        extend(frame, FRAGMENT, [0, place[0], place[1], 0xbe, 0xef, 0, 1]);
    } else {
        let place = if is_first { 1u16 << 13 } else { UNITS }.to_be_bytes();
        frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&place);
        set_length(frame);
    }
}

impl Shape {
    /// Does it leave a frame that is what its headers say?
    pub(super) fn is_sound(&self) -> bool {
        matches!(self, Self::Whole | Self::Padded(_))
    }

    /// Does it to the bytes of a frame.
    pub(super) fn apply(&self, mut frame: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Whole => {}
            Self::Padded(bytes) => frame.extend(std::iter::repeat_n(0xa5, *bytes)),
            Self::Cut(length) => frame.truncate(*length),
            Self::Tagged => drop(frame.splice(12..12, [0x81, 0, 0, 7])),
            Self::Overheard => frame[..6].copy_from_slice(&[2, 0, 0, 0, 9, 9]),
            Self::Extended(headers) if is_ipv6(&frame) => {
                // From the last to the first, each in front of the others.
                headers.iter().rev().for_each(|header| extend(&mut frame, *header, [0; 7]));
            }
            Self::Extended(_) => {}
            Self::Fragment { is_first } => fragment(&mut frame, *is_first),
            Self::Noise(changes) => {
                let length = frame.len() - ETHERNET;
                let is_ipv6 = is_ipv6(&frame);
                // A packet whose source is a multicast address the kernel routes nowhere, as IPv6 has it.
                let is_source = |at: usize| is_ipv6 && at == 8;
                let changes = changes.iter().map(|(at, bits)| (at % length, bits));
                for (at, bits) in changes.filter(|(at, _)| !is_source(*at)) {
                    frame[ETHERNET + at] ^= bits;
                }
            }
        }
        frame
    }
}
