//! A program's expected result for a packet: the core, run natively, and headers rewritten word by word.

use proxy_common::{
    crc32c,
    decide::{self, Completion, Translation, Verdict, memory::MemoryTables},
    layout::{
        flow::{Mac, Tuple},
        fragment::QueuedFragment,
    },
    packet::{
        Dissected, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Part,
        Unparsed, dissect,
    },
};

use crate::{Frame, Kernel, PacketFamily, checksums_are_valid, sys::Kind};

/// Parses the packet whose network header is at this offset.
pub(super) fn parse<F: PacketFamily>(bytes: &[u8], network: usize) -> Result<Packet<F>, Unparsed> {
    let range = bytes.as_ptr_range();
    // SAFETY: the range of a slice.
    unsafe { F::parse(range.start, range.end, network) }
}

/// A program's view of the headers: what the fast-path parse reads, or the full parse, with the ports of its first fragment.
pub(super) struct Read<F: PacketFamily> {
    pub(super) dissected: Dissected<F>,
    pub(super) completion: Completion,
    /// The fast-path parse left it.
    pub(super) is_slow_path: bool,
}

/// Reads the headers as the program of this name does; none if they are nothing for it.
pub(super) fn read<F: PacketFamily>(
    tables: &MemoryTables<F>,
    program: &str,
    bytes: &[u8],
    network: usize,
) -> Option<Read<F>> {
    let mut dissected = Dissected::default();
    match parse::<F>(bytes, network) {
        Ok(packet) => {
            dissected.packet = packet;
            Some(Read { dissected, completion: Completion::Complete, is_slow_path: false })
        }
        // Left to tc.
        Err(Unparsed::SlowPath) if Kernel::kind(program) == Kind::Xdp => None,
        Err(Unparsed::SlowPath) => {
            let is_parsed = dissect(bytes, network, &mut dissected);
            let completion = decide::complete(tables, &mut dissected, is_parsed);
            Some(Read { dissected, completion, is_slow_path: true })
        }
        Err(_) => None,
    }
}

/// Whether the program of this name queues such a fragment.
pub(super) fn is_held<F: PacketFamily>(
    tables: &MemoryTables<F>,
    program: &str,
    bytes: &[u8],
    read: &Read<F>,
) -> bool {
    program.ends_with("_ingress")
        && read.completion == Completion::Early
        && bytes.len() <= QueuedFragment::LONGEST as usize
        && decide::may_be_for_service(tables, &read.dissected.packet.tuple.dst)
}

/// Makes the same call to the core as the program of this name.
pub(super) fn decide<F: PacketFamily>(
    tables: &MemoryTables<F>,
    program: &str,
    ifindex: u32,
    packet: &Packet<F>,
) -> (Verdict, Translation<F>) {
    let mut out = Translation::default();
    let verdict = match program {
        "pod_ingress" => decide::pod_ingress(tables, packet, ifindex, &mut out),
        "pod_egress" => decide::pod_egress(tables, packet, &mut out),
        "uplink_egress" | "uplink_l3_egress" => decide::uplink_egress(tables, packet, &mut out),
        _ => decide::uplink_ingress(tables, packet, ifindex, &mut out),
    };
    (verdict, out)
}

/// A program's return codes for packets that are passed on, dropped, and sent out of a device.
pub(super) fn results(kind: Kind) -> (u32, u32, u32) {
    match kind {
        Kind::Tc => (u32::MAX, 2, 7),
        Kind::Xdp => (2, 1, 3),
    }
}

/// The size of a packet: at XDP that in its header, because frames may be in several buffers.
pub(super) fn size<F: PacketFamily>(kind: Kind, bytes: &[u8], network: usize) -> u32 {
    let length = |at: usize| u16::from_be_bytes([bytes[network + at], bytes[network + at + 1]]) as u32;
    match (kind, F::IS_V4) {
        (Kind::Tc, _) => (bytes.len() - network) as u32,
        (Kind::Xdp, true) => length(2),
        (Kind::Xdp, false) => 40 + length(4),
    }
}

/// The bytes of a MAC.
pub(super) fn bytes(mac: Mac) -> [u8; 6] {
    let words = mac.0.map(u16::to_ne_bytes);
    [words[0][0], words[0][1], words[1][0], words[1][1], words[2][0], words[2][1]]
}

fn octets<F: PacketFamily>(addr: &F::Addr) -> Vec<u8> {
    match F::to_ip(addr) {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A one's complement checksum after these bytes, at even offsets, became those (RFC 1624, equation 3).
fn updated(checksum: [u8; 2], from: &[u8], to: &[u8]) -> [u8; 2] {
    let words = |bytes: &[u8]| -> Vec<u64> {
        bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]) as u64).collect()
    };
    let mut sum = !u16::from_be_bytes(checksum) as u64;
    sum += words(from).iter().map(|word| 0xffff - word).sum::<u64>() + words(to).iter().sum::<u64>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Rewrites addresses, ports, hop limit and checksums, whatever else is wrong with the packet.
pub(super) fn rewrite<F: PacketFamily>(
    input: &[u8],
    network: usize,
    dissected: &Dissected<F>,
    to: &Tuple<F>,
    hops: u8,
) -> Vec<u8> {
    if dissected.part == Part::Error {
        return rewrite_error(input, network, dissected, to, hops);
    }
    let mut out = input.to_vec();
    let packet = &dissected.packet;
    let from = &packet.tuple;
    let addresses = |tuple: &Tuple<F>| [octets::<F>(&tuple.src), octets::<F>(&tuple.dst)].concat();
    let ports = |tuple: &Tuple<F>| [tuple.sport.to_ne_bytes(), tuple.dport.to_ne_bytes()].concat();
    let (old, new) = (addresses(from), addresses(to));
    let at = network + if F::IS_V4 { 12 } else { 8 };
    out[at..at + new.len()].copy_from_slice(&new);
    let hop_limit = network + if F::IS_V4 { 8 } else { 7 };
    let hops_before = [out[hop_limit], 0];
    out[hop_limit] = out[hop_limit].wrapping_sub(hops);
    if F::IS_V4 {
        let field = network + 10;
        let hops_after = [out[hop_limit], 0];
        let sum = updated([out[field], out[field + 1]], &hops_before, &hops_after);
        out[field..field + 2].copy_from_slice(&updated(sum, &old, &new));
    }
    if dissected.part == Part::Later {
        return out;
    }
    let transport = packet.transport;
    out[transport..transport + 4].copy_from_slice(&ports(to));
    let field = packet.checksum_offset();
    match packet.protocol {
        PROTOCOL_SCTP => {
            let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let length =
                |at: usize| u16::from_be_bytes([input[network + at], input[network + at + 1]]) as usize;
            let end = if F::IS_V4 { network + length(2) } else { network + 40 + length(4) };
            let difference = word(&ports(from)) ^ word(&ports(to));
            let length = end.wrapping_sub(transport) as u16;
            let sum = crc32c::update(word(&input[field..]), difference, length);
            out[field..field + 4].copy_from_slice(&sum.to_le_bytes());
        }
        PROTOCOL_UDP if out[field..field + 2] == [0, 0] => {}
        protocol => {
            let before = [out[field], out[field + 1]];
            let mut sum = updated(updated(before, &old, &new), &ports(from), &ports(to));
            if protocol == PROTOCOL_UDP && sum == [0, 0] {
                sum = [0xff, 0xff];
            }
            out[field..field + 2].copy_from_slice(&sum);
        }
    }
    out
}

/// An ICMP error (RFC 5508 section 4.2, for IPv6 by analogy): outside the addresses of the flow, inside the packet as the
/// receiver of the error has sent it. Its source changes where that of a reply would.
fn rewrite_error<F: PacketFamily>(
    input: &[u8],
    network: usize,
    dissected: &Dissected<F>,
    to: &Tuple<F>,
    hops: u8,
) -> Vec<u8> {
    let mut out = input.to_vec();
    let Dissected { packet, icmp, reporter, .. } = *dissected;
    let quote = icmp + 8;
    let mut put = |network: usize, src: &F::Addr, dst: &F::Addr, hops: u8| {
        let at = network + if F::IS_V4 { 12 } else { 8 };
        let new = [octets::<F>(src), octets::<F>(dst)].concat();
        let old = out[at..at + new.len()].to_vec();
        out[at..at + new.len()].copy_from_slice(&new);
        let hop_limit = network + if F::IS_V4 { 8 } else { 7 };
        let before = [out[hop_limit], 0];
        out[hop_limit] = out[hop_limit].wrapping_sub(hops);
        if F::IS_V4 {
            let field = network + 10;
            let sum = updated([out[field], out[field + 1]], &before, &[out[hop_limit], 0]);
            out[field..field + 2].copy_from_slice(&updated(sum, &old, &new));
        }
        (old, new)
    };
    let source = if to.src == packet.tuple.src { reporter } else { to.src };
    let outer = put(network, &source, &to.dst, hops);
    let (old, new) = put(quote, &to.dst, &to.src, 0);
    let ports = [to.dport.to_ne_bytes(), to.sport.to_ne_bytes()].concat();
    let at = packet.transport;
    let old_ports = out[at..at + 4].to_vec();
    out[at..at + 4].copy_from_slice(&ports);
    let field = packet.checksum_offset();
    if packet.protocol != PROTOCOL_SCTP && out.len() >= field + 2 && out[field..field + 2] != [0, 0] {
        let sum = updated([out[field], out[field + 1]], &old, &new);
        out[field..field + 2].copy_from_slice(&updated(sum, &old_ports, &ports));
    }
    // The sum of the message, from all of its bytes.
    let even = |bytes: &[u8]| [bytes, &[0][..bytes.len() % 2]].concat();
    let field = icmp + 2;
    let mut sum = updated([out[field], out[field + 1]], &even(&input[icmp..]), &even(&out[icmp..]));
    if !F::IS_V4 {
        sum = updated(sum, &outer.0, &outer.1);
    }
    out[field..field + 2].copy_from_slice(&sum);
    out
}

/// Whether they are the same, byte by byte. 0 and 0xffff are the same checksum, except for UDP.
pub(super) fn same<F: PacketFamily>(a: &[u8], b: &[u8], network: usize, dissected: &Dissected<F>) -> bool {
    let packet = &dissected.packet;
    let normal = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let header = F::IS_V4.then_some(network + 10);
        let has_transport = dissected.part != Part::Later && packet.protocol == PROTOCOL_TCP;
        let transport = has_transport.then_some(packet.checksum_offset());
        // An error has its own checksum, and may quote that of UDP, whose packet is not sent again.
        let quoted = (dissected.part == Part::Error)
            .then(|| [dissected.icmp + 2, dissected.icmp + 8 + 10, packet.checksum_offset()]);
        for at in header.into_iter().chain(transport).chain(quoted.into_iter().flatten()) {
            if bytes.get(at..at + 2) == Some(&[0xff, 0xff]) {
                bytes[at..at + 2].fill(0);
            }
        }
        bytes
    };
    normal(a) == normal(b)
}

/// Whether it is a reply to this frame, with the right checksums.
pub(super) fn is_answered(asked: &Frame, answer: &[u8], network: usize) -> bool {
    let is_v4 = asked.src.is_ipv4();
    let ether_type = if is_v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    let Some(ip) = answer.get(network..).filter(|ip| ip.len() >= if is_v4 { 20 } else { 40 }) else {
        return false;
    };
    let length = |at: usize| u16::from_be_bytes([ip[at], ip[at + 1]]) as usize;
    let length = if is_v4 { length(2) } else { 40 + length(4) };
    let Some(ip) = ip.get(..length) else { return false };
    let whole = [&[0; 12][..], &ether_type.to_be_bytes(), ip].concat();
    let addresses = match (asked.src.ip(), asked.dst.ip()) {
        (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => [dst.octets(), src.octets()].concat(),
        (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => [dst.octets(), src.octets()].concat(),
        _ => return false,
    };
    let at = if is_v4 { 12 } else { 8 };
    ip[at..at + addresses.len()] == addresses && checksums_are_valid(&whole)
}
