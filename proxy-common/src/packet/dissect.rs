//! What the fast-path parse leaves: fragments, IPv6 extension headers, ICMP errors.
//!
//! These are rare, so everything is read by offset ([`Bytes`]), wherever in the packet it is.

use super::{
    IPV4, IPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Parse, extensions, flags_of_chunk,
};
use crate::{
    Family, V4, V6,
    layout::{flow::Tuple, fragment::FragmentKey},
};

/// The bytes of a packet.
pub trait Bytes {
    /// The value at an offset from the start of the frame; none behind the packet's end. `T` must be made of integers.
    fn load<T: Copy>(&self, offset: usize) -> Option<T>;
}

impl Bytes for [u8] {
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..)?.get(..size_of::<T>())?;
        // SAFETY: so many readable bytes, and any are valid integers.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// Whole, without options or extension headers: the fast-path parse took it.
    Plain,
    /// Whole.
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// Another fragment.
    Later,
    /// An ICMP error.
    Error,
}

/// A packet, and which part of the original it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dissected<F: Family> {
    /// What the decision core needs to know.
    ///
    /// Of [`Part::Later`], ports and protocol are still to be found. Of [`Part::Error`], the tuple is that of a reply to
    /// the quoted packet, protocol and transport offset are those of the quoted packet, and the hop limit is the error's.
    pub packet: Packet<F>,
    /// What it is.
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
    /// What it shares with the other fragments of its packet.
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
    /// IP protocol number of what follows.
    protocol: u8,
    /// Where it follows.
    transport: usize,
    part: Part,
    identification: u32,
    fragmented: u32,
}

/// Offset of TCP's sequence and acknowledgment numbers.
const TCP_NUMBERS: usize = 4;
/// Bytes of TCP's header up to its flags.
const TCP_FLAGS: usize = 13;
/// Where an SCTP packet's first chunk has its type.
const SCTP_CHUNK: usize = 12;
/// Offset of the packet that an ICMP error quotes, from the ICMP header.
pub(super) const QUOTE: usize = super::ICMP;

/// Takes a packet apart whose network header starts at offset `network`; false if it is nothing that services have.
#[inline(always)]
pub fn dissect<F: Parse, B: Bytes + ?Sized>(bytes: &B, network: usize, out: &mut Dissected<F>) -> bool {
    // `out` may be left from another packet.
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
        PROTOCOL_TCP => bytes.load::<u8>(outer.transport + TCP_FLAGS),
        PROTOCOL_UDP => Some(0),
        // Its checksum is of the whole packet, of which only a part is here.
        PROTOCOL_SCTP if matches!(outer.part, Part::First) => None,
        PROTOCOL_SCTP => bytes.load::<u8>(outer.transport + SCTP_CHUNK).map(flags_of_chunk),
        _ => None,
    };
    let Some(flags) = flags else { return false };
    out.packet.tcp_flags = flags;
    if outer.protocol == PROTOCOL_TCP {
        let Some([sequence, acknowledgment]) = bytes.load::<[u32; 2]>(outer.transport + TCP_NUMBERS) else {
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

/// An ICMP error: its receiver sent the packet that it quotes.
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

/// An IPv4 header.
#[inline(always)]
pub(super) fn ipv4(words: &[u32; 5], at: usize) -> Option<Network<V4>> {
    const MORE: u32 = 0x2000;
    const OFFSET: u32 = 0x1fff;
    let [first, second, third] = [words[0], words[1], words[2]].map(u32::from_be);
    let length = (first >> 24 & 0xf) as usize * 4;
    if first >> 28 != 4 || length < IPV4 {
        return None;
    }
    let protocol = (third >> 16) as u8;
    let part = match (second & OFFSET != 0, second & MORE != 0) {
        (true, _) => Part::Later,
        (false, true) => Part::First,
        (false, false) => Part::Whole,
    };
    Some(Network {
        src: words[3],
        dst: words[4],
        hop_limit: (third >> 24) as u8,
        protocol,
        transport: at + length,
        part,
        identification: ((second >> 16) as u16).to_be() as u32,
        fragmented: protocol as u32,
    })
}

/// More extension headers than any packet has that is meant well.
const EXTENSIONS: usize = 6;

/// An IPv6 header with its extension headers.
#[inline(always)]
pub(super) fn ipv6<B: Bytes + ?Sized>(words: &[u32; 10], at: usize, bytes: &B) -> Option<Network<V6>> {
    if u32::from_be(words[0]) >> 28 != 6 {
        return None;
    }
    let second = u32::from_be(words[1]);
    let mut network = Network {
        src: [words[2], words[3], words[4], words[5]],
        dst: [words[6], words[7], words[8], words[9]],
        hop_limit: second as u8,
        protocol: (second >> 8) as u8,
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
                const OFFSET: u32 = 0xfff8;
                const MORE: u32 = 1;
                network.identification = second;
                if head & OFFSET != 0 {
                    // What follows is not headers.
                    network.protocol = (head >> 24) as u8;
                    network.part = Part::Later;
                    return Some(network);
                }
                if head & MORE != 0 {
                    network.part = Part::First;
                }
                8
            }
            // Not there yet: the destination is another.
            extensions::ROUTING if head as u8 != 0 => return None,
            extensions::AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        network.protocol = (head >> 24) as u8;
        network.transport += size;
    }
    None
}

#[cfg(test)]
mod tests;
