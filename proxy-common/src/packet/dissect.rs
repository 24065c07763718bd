//! Parses the packets that the fast-path parse does not: fragments, IPv6 extension headers, ICMP errors.
//!
//! These are rare, so everything is read by offset ([`Bytes`]), wherever in the packet it is.

use super::{
    IPV4, IPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Parse, VERSION_IPV4, VERSION_IPV6, WORD,
    extensions,
    field::{ipv4, ipv6, sctp, tcp},
    flags_of_chunk, ipv4_fragment, ipv6_fragment, word,
};
use crate::{
    Family, V4, V6,
    layout::{flow::Tuple, fragment::FragmentKey},
};

/// The bytes of a packet.
pub trait Bytes {
    /// The value at an offset from the start of the frame; `None` behind the packet's end. `T` must consist of
    /// integers.
    fn load<T: Copy>(&self, offset: usize) -> Option<T>;
}

impl Bytes for [u8] {
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: so many bytes are readable, and any are valid integers.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

/// The kind of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// Unfragmented, without options or extension headers: the fast-path parse took it.
    Plain,
    /// Unfragmented.
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// Another fragment.
    Later,
    /// An ICMP error.
    Error,
}

/// A packet, and its part of the original packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dissected<F: Family> {
    /// The fields that the decision core reads.
    ///
    /// Of [`Part::Later`], ports and protocol are still missing. Of [`Part::Error`], the tuple is that of a
    /// reply to the quoted packet, protocol and transport offset are those of the quoted packet, and the hop
    /// limit is the error's.
    pub packet: Packet<F>,
    /// The part.
    pub part: Part,
    /// Identification of a fragment, as in the header.
    pub identification: u32,
    /// Protocol of the fragmented packet as its fragments have it; 0 with IPv6.
    pub fragmented: u32,
    /// Source of an error: the host that reports it.
    pub reporter: F::Addr,
    /// Offset of an error's ICMP header.
    pub icmp: usize,
}

impl<F: Family> Dissected<F> {
    /// The fields that it shares with the other fragments of its packet.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey<F> {
        let Tuple { src, dst, .. } = self.packet.tuple;
        FragmentKey { src, dst, identification: self.identification, protocol: self.fragmented }
    }
}

impl<F: Family> Default for Dissected<F> {
    #[inline(always)]
    fn default() -> Self {
        Self {
            packet: Packet {
                tuple: Tuple { src: F::UNSPECIFIED, dst: F::UNSPECIFIED, sport: 0, dport: 0 },
                protocol: 0,
                tcp_flags: 0,
                hop_limit: 0,
                sequence: 0,
                acknowledgment: 0,
                transport: 0,
                follows: false,
            },
            part: Part::Whole,
            identification: 0,
            fragmented: 0,
            reporter: F::UNSPECIFIED,
            icmp: 0,
        }
    }
}

/// A network header with its extension headers.
#[derive(Clone, Copy)]
pub struct Network<F: Family> {
    src: F::Addr,
    dst: F::Addr,
    hop_limit: u8,
    /// IP protocol number of the header or data that follows.
    protocol: u8,
    /// Offset of that.
    transport: usize,
    part: Part,
    identification: u32,
    fragmented: u32,
}

/// Offset of the packet that an ICMP error quotes, from the ICMP header.
pub(super) const QUOTE: usize = super::ICMP;

/// Parses a packet whose network header starts at offset `network`; false if Services have no such packets.
///
/// ```
/// use proxy_common::{
///     V4,
///     packet::{Dissected, PROTOCOL_UDP, Part, dissect},
/// };
///
/// // IPv4 and UDP; more fragments follow.
/// let mut packet = vec![0x45, 0, 0, 32, 0xab, 0xcd, 0x20, 0, 64, PROTOCOL_UDP, 0, 0, 10, 244, 1, 7, 10, 96, 0, 10];
/// packet.extend([0x9c, 0x40, 0, 53, 0, 100, 0, 0, 1, 2, 3, 4]);
/// let mut dissected = Dissected::<V4>::default();
/// assert!(dissect(packet.as_slice(), 0, &mut dissected));
/// assert_eq!(dissected.part, Part::First);
/// assert_eq!((dissected.packet.transport, u16::from_be(dissected.packet.tuple.dport)), (20, 53));
/// // The others are found by this.
/// assert_eq!(dissected.fragment_key().identification, u32::from(u16::from_be_bytes([0xab, 0xcd]).to_be()));
/// ```
#[inline(always)]
pub fn dissect<F: Parse, B: Bytes + ?Sized>(bytes: &B, network: usize, out: &mut Dissected<F>) -> bool {
    // `out` may have the fields of another packet.
    out.part = Part::Plain;
    out.packet.tcp_flags = 0;
    out.packet.sequence = 0;
    out.packet.acknowledgment = 0;
    out.packet.follows = false;
    let Some(outer) = read_network::<F, _>(bytes, network) else { return false };
    out.packet.tuple.src = outer.src;
    out.packet.tuple.dst = outer.dst;
    out.packet.hop_limit = outer.hop_limit;
    out.packet.protocol = outer.protocol;
    out.packet.transport = outer.transport;
    out.part = outer.part;
    out.identification = outer.identification;
    out.fragmented = outer.fragmented;
    if matches!(outer.part, Part::Later) {
        out.packet.follows = true;
        return true;
    }
    if outer.protocol == F::ICMP {
        return matches!(outer.part, Part::Whole) && error::<F, _>(bytes, &outer, out);
    }
    let Some(ports) = bytes.load::<u32>(outer.transport) else { return false };
    set_ports(&mut out.packet.tuple, ports);
    let flags = match outer.protocol {
        PROTOCOL_TCP => bytes.load::<u8>(outer.transport + tcp::FLAGS),
        PROTOCOL_UDP => Some(0),
        // SCTP's checksum covers the whole packet, of which this is only a part.
        PROTOCOL_SCTP if matches!(outer.part, Part::First) => None,
        PROTOCOL_SCTP => bytes.load::<u8>(outer.transport + sctp::CHUNK_TYPE).map(flags_of_chunk),
        _ => None,
    };
    let Some(flags) = flags else { return false };
    out.packet.tcp_flags = flags;
    if outer.protocol == PROTOCOL_TCP {
        let Some([sequence, acknowledgment]) = bytes.load::<[u32; 2]>(outer.transport + tcp::SEQUENCE) else {
            return false;
        };
        out.packet.sequence = u32::from_be(sequence);
        out.packet.acknowledgment = u32::from_be(acknowledgment);
    }
    true
}

#[inline(always)]
fn set_ports<F: Family>(tuple: &mut Tuple<F>, ports: u32) {
    // As they stand in the packet: the source port is in the first two bytes.
    let ports = ports.to_le();
    (tuple.sport, tuple.dport) = ((ports as u16).to_le(), ((ports >> 16) as u16).to_le());
}

#[inline(always)]
fn read_network<F: Parse, B: Bytes + ?Sized>(bytes: &B, at: usize) -> Option<Network<F>> {
    F::network(&bytes.load::<F::Words>(at)?, at, bytes)
}

/// Parses an ICMP error. Its receiver sent the packet that it quotes.
#[inline(always)]
fn error<F: Parse, B: Bytes + ?Sized>(bytes: &B, outer: &Network<F>, out: &mut Dissected<F>) -> bool {
    let icmp = outer.transport;
    if !bytes.load::<u8>(icmp).is_some_and(F::is_error) {
        return false;
    }
    let Some(quoted) = read_network::<F, _>(bytes, icmp + QUOTE) else { return false };
    let has_ports = matches!(quoted.protocol, PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP);
    if !has_ports || matches!(quoted.part, Part::Later) || !F::same(&quoted.src, &outer.dst) {
        return false;
    }
    let Some(ports) = bytes.load::<u32>(quoted.transport) else { return false };
    let mut sent = Tuple { src: quoted.src, dst: quoted.dst, sport: 0, dport: 0 };
    set_ports(&mut sent, ports);
    out.packet.tuple = sent.reversed();
    out.packet.protocol = quoted.protocol;
    out.packet.transport = quoted.transport;
    out.packet.follows = true;
    out.part = Part::Error;
    out.reporter = outer.src;
    out.icmp = icmp;
    true
}

/// The bytes of the header word that has the field at this offset.
#[inline(always)]
fn bytes_of<const WORDS: usize>(words: &[u32; WORDS], offset: usize) -> [u8; WORD] {
    words[word(offset)].to_ne_bytes()
}

/// Parses an IPv4 header.
#[inline(always)]
pub(super) fn read_ipv4(words: &[u32; word(IPV4)], at: usize) -> Option<Network<V4>> {
    let [version_ihl, ..] = bytes_of(words, ipv4::VERSION_IHL);
    let length = (version_ihl & 0xf) as usize * WORD;
    if version_ihl >> 4 != VERSION_IPV4 || length < IPV4 {
        return None;
    }
    let identification_fragment = u32::from_be(words[word(ipv4::IDENTIFICATION)]);
    let fragment = identification_fragment as u16;
    let part = match (fragment & ipv4_fragment::OFFSET != 0, fragment & ipv4_fragment::MORE != 0) {
        (true, _) => Part::Later,
        (false, true) => Part::First,
        (false, false) => Part::Whole,
    };
    let [hop_limit, protocol, ..] = bytes_of(words, ipv4::TTL);
    Some(Network {
        src: words[word(ipv4::SOURCE)],
        dst: words[word(ipv4::DESTINATION)],
        hop_limit,
        protocol,
        transport: at + length,
        part,
        identification: ((identification_fragment >> 16) as u16).to_be() as u32,
        fragmented: protocol as u32,
    })
}

/// Maximum number of extension headers; legitimate packets have fewer.
const EXTENSIONS: usize = 6;

/// Parses an IPv6 header with its extension headers.
#[inline(always)]
pub(super) fn read_ipv6<B: Bytes + ?Sized>(
    words: &[u32; word(IPV6)],
    at: usize,
    bytes: &B,
) -> Option<Network<V6>> {
    const SOURCE: usize = word(ipv6::SOURCE);
    const DESTINATION: usize = word(ipv6::DESTINATION);
    // By shifts, not by bytes: the programs have fewer instructions.
    if u32::from_be(words[word(ipv6::VERSION)]) >> 28 != VERSION_IPV6 as u32 {
        return None;
    }
    let length_next_hops = u32::from_be(words[word(ipv6::NEXT_HEADER)]);
    let mut network = Network {
        src: [words[SOURCE], words[SOURCE + 1], words[SOURCE + 2], words[SOURCE + 3]],
        dst: [words[DESTINATION], words[DESTINATION + 1], words[DESTINATION + 2], words[DESTINATION + 3]],
        hop_limit: length_next_hops as u8,
        protocol: (length_next_hops >> 8) as u8,
        transport: at + IPV6,
        part: Part::Whole,
        identification: 0,
        fragmented: 0,
    };
    for _ in 0..EXTENSIONS {
        if !extensions::is_extension(network.protocol) {
            return Some(network);
        }
        let [head, second] = bytes.load::<[u32; 2]>(network.transport)?;
        let head = u32::from_be(head);
        let length = (head >> 16 & 0xff) as usize;
        let size = match network.protocol {
            extensions::FRAGMENT => {
                network.identification = second;
                if head & ipv6_fragment::OFFSET as u32 != 0 {
                    // The data that follows has no headers.
                    network.protocol = (head >> 24) as u8;
                    network.part = Part::Later;
                    return Some(network);
                }
                if head & ipv6_fragment::MORE as u32 != 0 {
                    network.part = Part::First;
                }
                extensions::FRAGMENT_SIZE
            }
            // Segments are left, so the final destination is another.
            extensions::ROUTING if head as u8 != 0 => return None,
            extensions::AUTHENTICATION => extensions::size_of_authentication(length),
            _ => extensions::size(length),
        };
        network.protocol = (head >> 24) as u8;
        network.transport += size;
    }
    None
}

#[cfg(test)]
mod tests;
