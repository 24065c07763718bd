//! Headers in, [`Packet`] out. Raw pointers with one bounds check per header: slices would not verify.
//!
//! This is for nearly all packets. [`dissect`] takes the others: fragments, extension headers, ICMP errors.

mod dissect;

pub use dissect::{Bytes, Dissected, Part, dissect};

use crate::{Family, V4, V6, layout::flow::Tuple};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP: usize = 20;
/// Bytes of a UDP header.
pub const UDP: usize = 8;

/// Bytes of an ICMP or ICMPv6 header.
pub const ICMP: usize = 8;
/// Bytes of an SCTP header.
pub const SCTP_HEADER: usize = 12;

/// Bytes of an SCTP header with the head of its first chunk.
pub const SCTP: usize = 16;

/// EtherType of IPv4, host byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6, host byte order.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of SCTP.
pub const PROTOCOL_SCTP: u8 = 132;
/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// Next header number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Next header numbers of IPv6's extension headers (RFC 8200 section 4, RFC 4302).
pub mod extensions {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;

    /// Is it one of these?
    #[inline(always)]
    pub fn is_extension(next: u8) -> bool {
        matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
    }
}

/// Chunk types that say where an association is (RFC 9260 section 3.2).
pub mod sctp_chunks {
    /// Opens an association, always alone in its packet.
    pub const INIT: u8 = 1;
    /// Answers it, always alone in its packet.
    pub const INIT_ACK: u8 = 2;
    /// Ends the association at once.
    pub const ABORT: u8 = 6;
    /// The association is over.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// TCP flag bits (RFC 9293).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Resets the connection.
    pub const RST: u8 = 4;
    /// Acknowledges; a SYN without it is the client's.
    pub const ACK: u8 = 16;
}

/// What the decision core needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<F: Family> {
    /// Addresses and ports.
    pub tuple: Tuple<F>,
    /// IP protocol number: TCP, UDP or SCTP; or ICMP (of either family) for an echo request, without ports.
    pub protocol: u8,
    /// TCP flags; 0 for UDP and echo requests; for SCTP those that its first chunk compares to.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TCP: sequence number, host byte order; else 0.
    pub sequence: u32,
    /// TCP: acknowledgment number, host byte order; else 0.
    pub acknowledgment: u32,
    /// Offset of the transport header from the start of the frame.
    pub transport: usize,
    /// It goes the way of a flow that is there, and never opens one: a fragment other than the first, or an ICMP error
    /// about a packet of the flow's other direction, whose tuple is then that of an answer to that packet.
    pub follows: bool,
}

impl<F: Family> Packet<F> {
    /// The first packet of a TCP connection?
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }

    /// The answer to the first packet of a TCP connection?
    #[inline(always)]
    pub fn is_syn_ack(&self) -> bool {
        self.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN | tcp_flags::ACK
    }

    /// Does it ask for a new connection? TCP with SYN and without ACK, RST and FIN, an SCTP INIT, or any datagram that is not part of
    /// another one. Nothing else is a request to a frontend.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        const OPENING: u8 = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN;
        !self.follows && (self.protocol == PROTOCOL_UDP || self.tcp_flags & OPENING == tcp_flags::SYN)
    }

    /// Somebody asks whether the address is there?
    #[inline(always)]
    pub fn is_echo_request(&self) -> bool {
        self.protocol == PROTOCOL_ICMP || self.protocol == PROTOCOL_ICMPV6
    }

    /// Does it end a TCP connection?
    #[inline(always)]
    pub fn is_closing(&self) -> bool {
        self.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0
    }

    /// Does it end a TCP connection at once?
    #[inline(always)]
    pub fn is_reset(&self) -> bool {
        self.tcp_flags & tcp_flags::RST != 0
    }

    /// Offset of the transport checksum from the start of the frame.
    #[inline(always)]
    pub fn checksum_offset(&self) -> usize {
        self.transport
            + match self.protocol {
                PROTOCOL_TCP => 16,
                PROTOCOL_SCTP => 8,
                _ => 6,
            }
    }
}

impl<F: Parse> Packet<F> {
    /// TCP or UDP, behind a network header without options that starts at this offset?
    #[inline(always)]
    pub fn is_plain(&self, network: usize) -> bool {
        self.transport == network + F::HEADER && matches!(self.protocol, PROTOCOL_TCP | PROTOCOL_UDP)
    }
}

/// Why there is no [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Nothing that services have: another protocol, or a header that contradicts itself.
    NotOurs,
    /// The headers are longer than what can be read here.
    Short,
    /// For [`dissect`]: a fragment, a packet with extension headers, or an ICMP error.
    Unusual,
}

/// A family's headers.
pub trait Parse: Family {
    /// Shortest network header in bytes.
    const HEADER: usize;
    /// Where it has its addresses, the source first.
    const ADDRESSES: usize;
    /// The header, as it is read at once.
    type Words: Copy;
    /// The family's ICMP.
    const ICMP: u8;

    /// Is it an ICMP message that is an error, and so quotes a packet?
    fn is_error(r#type: u8) -> bool;
    /// The length of the whole packet that a network header tells.
    ///
    /// # Safety
    /// `header` points to [`Self::HEADER`] readable bytes.
    unsafe fn total_length(header: *const u8) -> u32;
    /// The headers from the network header up to the transport header, with help from `bytes` for those that follow.
    fn network<B: Bytes + ?Sized>(
        words: &Self::Words,
        at: usize,
        bytes: &B,
    ) -> Option<dissect::Network<Self>>;

    /// Parses the packet between `data` and `end`, whose network header starts at offset `network`.
    ///
    /// # Errors
    /// See [`Unparsed`].
    ///
    /// # Safety
    /// All bytes from `data` up to `end` are readable.
    #[inline(always)]
    unsafe fn parse(data: *const u8, end: *const u8, network: usize) -> Result<Packet<Self>, Unparsed> {
        // SAFETY: the caller's promise.
        unsafe { Self::parse_as::<false>(data, end, network) }
    }

    /// The same for TCP and UDP behind a network header of [`Self::HEADER`] bytes alone: all offsets are constants.
    ///
    /// # Safety
    /// All bytes from `data` up to `end` are readable.
    #[inline(always)]
    unsafe fn parse_plain(data: *const u8, end: *const u8, network: usize) -> Option<Packet<Self>> {
        // SAFETY: the caller's promise.
        unsafe { Self::parse_as::<true>(data, end, network).ok() }
    }

    /// Either of them.
    ///
    /// # Errors
    /// See [`Unparsed`].
    ///
    /// # Safety
    /// All bytes from `data` up to `end` are readable.
    unsafe fn parse_as<const PLAIN: bool>(
        data: *const u8,
        end: *const u8,
        network: usize,
    ) -> Result<Packet<Self>, Unparsed>;
}

/// Reads a word from an address that need not be aligned: a single load in the kernel programs.
///
/// # Safety
/// The bytes are readable.
#[inline(always)]
pub unsafe fn read<T: Copy>(at: *const u8) -> T {
    // In the kernel programs `read_unaligned` would become a load per byte; the verifier checks the alignment there.
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        at.cast::<T>().read()
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        at.cast::<T>().read_unaligned()
    }
}

impl Parse for V4 {
    const HEADER: usize = IPV4;
    const ADDRESSES: usize = 12;
    type Words = [u32; 5];
    const ICMP: u8 = PROTOCOL_ICMP;

    /// Destination unreachable, source quench, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_error(r#type: u8) -> bool {
        matches!(r#type, 3 | 4 | 11 | 12)
    }

    #[inline(always)]
    unsafe fn total_length(header: *const u8) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { u16::from_be(read(header.wrapping_add(2))) as u32 }
    }

    #[inline(always)]
    fn network<B: Bytes + ?Sized>(words: &[u32; 5], at: usize, _: &B) -> Option<dissect::Network<Self>> {
        dissect::ipv4(words, at)
    }

    #[inline(always)]
    unsafe fn parse_as<const PLAIN: bool>(
        data: *const u8,
        end: *const u8,
        network: usize,
    ) -> Result<Packet<Self>, Unparsed> {
        const FRAGMENT: u16 = 0x3fff; // more fragments, or an offset
        let ip = data.wrapping_add(network);
        if ip.wrapping_add(IPV4) > end {
            return Err(Unparsed::Short);
        }
        // SAFETY: the header's 20 bytes were just found to be readable.
        let (version_ihl, fragment, hop_limit, protocol, src, dst) = unsafe {
            (
                read::<u8>(ip),
                read::<u16>(ip.wrapping_add(6)),
                read::<u8>(ip.wrapping_add(8)),
                read::<u8>(ip.wrapping_add(9)),
                read::<u32>(ip.wrapping_add(12)),
                read::<u32>(ip.wrapping_add(16)),
            )
        };
        let length = if PLAIN { IPV4 } else { ((version_ihl & 0xf) as usize) * 4 };
        if version_ihl >> 4 != 4 || length < IPV4 || PLAIN && version_ihl != 0x45 {
            return Err(Unparsed::NotOurs);
        }
        if u16::from_be(fragment) & FRAGMENT != 0 {
            return Err(Unparsed::Unusual);
        }
        // SAFETY: the caller's promise.
        unsafe {
            transport::<_, PLAIN>(
                Bounds { data, end, echo: 8 },
                network + length,
                protocol,
                hop_limit,
                src,
                dst,
            )
        }
    }
}

impl Parse for V6 {
    const HEADER: usize = IPV6;
    const ADDRESSES: usize = 8;
    type Words = [u32; 10];
    const ICMP: u8 = PROTOCOL_ICMPV6;

    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(r#type: u8) -> bool {
        matches!(r#type, 1..=4)
    }

    #[inline(always)]
    unsafe fn total_length(header: *const u8) -> u32 {
        // SAFETY: the caller's promise.
        IPV6 as u32 + unsafe { u16::from_be(read(header.wrapping_add(4))) as u32 }
    }

    #[inline(always)]
    fn network<B: Bytes + ?Sized>(words: &[u32; 10], at: usize, bytes: &B) -> Option<dissect::Network<Self>> {
        dissect::ipv6(words, at, bytes)
    }

    #[inline(always)]
    unsafe fn parse_as<const PLAIN: bool>(
        data: *const u8,
        end: *const u8,
        network: usize,
    ) -> Result<Packet<Self>, Unparsed> {
        let ip = data.wrapping_add(network);
        if ip.wrapping_add(IPV6) > end {
            return Err(Unparsed::Short);
        }
        // SAFETY: the header's 40 bytes were just found to be readable.
        let (version, next, hop_limit, src, dst) = unsafe {
            let word = |at: usize| read::<u32>(ip.wrapping_add(at));
            (
                read::<u8>(ip) >> 4,
                read::<u8>(ip.wrapping_add(6)),
                read::<u8>(ip.wrapping_add(7)),
                [word(8), word(12), word(16), word(20)],
                [word(24), word(28), word(32), word(36)],
            )
        };
        if version != 6 {
            return Err(Unparsed::NotOurs);
        }
        if extensions::is_extension(next) {
            return Err(Unparsed::Unusual);
        }
        // SAFETY: the caller's promise.
        unsafe {
            transport::<_, PLAIN>(Bounds { data, end, echo: 128 }, network + IPV6, next, hop_limit, src, dst)
        }
    }
}

/// What a transport header is read from.
struct Bounds {
    data: *const u8,
    end: *const u8,
    /// Type of the family's echo requests.
    echo: u8,
}

/// # Safety
/// All bytes from `data` up to `end` are readable.
#[inline(always)]
unsafe fn transport<F: Parse, const PLAIN: bool>(
    bounds: Bounds,
    offset: usize,
    protocol: u8,
    hop_limit: u8,
    src: F::Addr,
    dst: F::Addr,
) -> Result<Packet<F>, Unparsed> {
    let Bounds { data, end, echo } = bounds;
    let header = data.wrapping_add(offset);
    let (mut sequence, mut acknowledgment) = (0, 0);
    let tcp_flags = match protocol {
        PROTOCOL_TCP => {
            if header.wrapping_add(TCP) > end {
                return Err(Unparsed::Short);
            }
            // SAFETY: within the 20 bytes just checked.
            unsafe {
                sequence = u32::from_be(read(header.wrapping_add(4)));
                acknowledgment = u32::from_be(read(header.wrapping_add(8)));
                read::<u8>(header.wrapping_add(13))
            }
        }
        PROTOCOL_UDP => {
            if header.wrapping_add(UDP) > end {
                return Err(Unparsed::Short);
            }
            0
        }
        PROTOCOL_SCTP if !PLAIN => {
            if header.wrapping_add(SCTP) > end {
                return Err(Unparsed::Short);
            }
            // SAFETY: within the 16 bytes just checked.
            flags_of_chunk(unsafe { read::<u8>(header.wrapping_add(12)) })
        }
        protocol if !PLAIN && protocol == F::ICMP => {
            if header.wrapping_add(ICMP) > end {
                return Err(Unparsed::Short);
            }
            // SAFETY: within the 8 bytes just checked.
            let (r#type, code) = unsafe { (read::<u8>(header), read::<u8>(header.wrapping_add(1))) };
            if F::is_error(r#type) {
                return Err(Unparsed::Unusual);
            }
            if r#type != echo || code != 0 {
                return Err(Unparsed::NotOurs);
            }
            let tuple = Tuple { src, dst, sport: 0, dport: 0 };
            return Ok(Packet {
                tuple,
                protocol,
                tcp_flags: 0,
                hop_limit,
                sequence: 0,
                acknowledgment: 0,
                transport: offset,
                follows: false,
            });
        }
        _ => return Err(Unparsed::NotOurs),
    };
    // SAFETY: all these headers begin with the ports and were found to be readable.
    let (sport, dport) = unsafe { (read::<u16>(header), read::<u16>(header.wrapping_add(2))) };
    let tuple = Tuple { src, dst, sport, dport };
    let (transport, follows) = (offset, false);
    Ok(Packet { tuple, protocol, tcp_flags, hop_limit, sequence, acknowledgment, transport, follows })
}

/// The timestamp of a TCP packet with SYN or FIN whose header starts at offset `transport` (RFC 7323); 0: none.
///
/// It is looked for only where common systems write it: no loop over options. With SYN behind MSS and SACK-permitted (Linux), or behind MSS
/// and window scale (BSD, macOS); else behind two of padding (RFC 7323 appendix A).
#[inline(always)]
pub fn timestamp<B: Bytes + ?Sized>(bytes: &B, transport: usize, is_syn: bool) -> u32 {
    /// Offset of the word with the header's length.
    const LENGTH: usize = 12;
    /// Kind and length of the option.
    const TIMESTAMP: u32 = 0x080a;
    let is_option = |word: u32| u32::from_be(word) & 0xffff == TIMESTAMP;
    if is_syn {
        let Some(words) = bytes.load::<[u32; 6]>(transport + LENGTH) else { return 0 };
        let length = u32::from_be(words[0]) >> 28;
        if length >= 9 && is_option(words[3]) {
            return u32::from_be(words[4]);
        }
        if length >= 10 && is_option(words[4]) {
            return u32::from_be(words[5]);
        }
        return 0;
    }
    match bytes.load::<[u32; 4]>(transport + LENGTH) {
        Some(words) if u32::from_be(words[0]) >> 28 >= 8 && is_option(words[2]) => u32::from_be(words[3]),
        _ => 0,
    }
}

/// What an SCTP chunk means for its association, in TCP's words.
#[inline(always)]
fn flags_of_chunk(chunk: u8) -> u8 {
    match chunk {
        sctp_chunks::INIT => tcp_flags::SYN,
        sctp_chunks::INIT_ACK => tcp_flags::SYN | tcp_flags::ACK,
        sctp_chunks::ABORT | sctp_chunks::SHUTDOWN_COMPLETE => tcp_flags::RST,
        _ => tcp_flags::ACK,
    }
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn parse<F: Parse>(bytes: &[u8]) -> Result<Packet<F>, Unparsed> {
        let range = bytes.as_ptr_range();
        // SAFETY: the range of a slice.
        unsafe { F::parse(range.start, range.end, 0) }
    }

    fn ipv4(options: usize, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x45 + (options / 4) as u8, 0, 0, 0, 0, 0, 0x40, 0, 63, protocol, 0, 0];
        bytes.extend([10, 0, 0, 1, 10, 96, 0, 1]);
        bytes.extend(vec![1; options]);
        bytes.extend(payload);
        bytes
    }

    fn tcp(flags: u8) -> Vec<u8> {
        let mut header = vec![0x9c, 0x40, 0, 80];
        header.extend([0; 9]);
        header.push(flags);
        header.extend([0; 6]);
        header
    }

    #[test]
    fn ipv4_with_and_without_options() {
        for options in [0, 4, 40] {
            let packet = parse::<V4>(&ipv4(options, PROTOCOL_TCP, &tcp(tcp_flags::SYN))).unwrap();
            assert_eq!(packet.transport, 20 + options);
            assert_eq!(packet.tuple.src.to_ne_bytes(), [10, 0, 0, 1]);
            assert_eq!(packet.tuple.dst.to_ne_bytes(), [10, 96, 0, 1]);
            assert_eq!((u16::from_be(packet.tuple.sport), u16::from_be(packet.tuple.dport)), (40_000, 80));
            assert!(packet.is_syn() && !packet.is_closing());
            assert_eq!((packet.hop_limit, packet.checksum_offset()), (63, 36 + options));
        }
    }

    #[test]
    fn ipv6_and_udp() {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 8, PROTOCOL_UDP, 9];
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfc; 16]);
        bytes.extend([0, 53, 0x30, 0x39, 0, 8, 0, 0]);
        let packet = parse::<V6>(&bytes).unwrap();
        assert_eq!(packet.tuple.src, [0xfdfd_fdfd; 4]);
        assert_eq!((u16::from_be(packet.tuple.sport), u16::from_be(packet.tuple.dport)), (53, 12_345));
        assert_eq!((packet.tcp_flags, packet.transport, packet.checksum_offset()), (0, 40, 46));
    }

    #[test]
    fn sctp_speaks_of_associations_as_tcp_of_connections() {
        for (chunk, is_syn, is_syn_ack, is_closing) in [
            (1, true, false, false),
            (2, false, true, false),
            (0, false, false, false),
            (6, false, false, true),
            (14, false, false, true),
        ] {
            let mut payload = vec![0; 16];
            payload[12] = chunk;
            let packet = parse::<V4>(&ipv4(0, PROTOCOL_SCTP, &payload)).unwrap();
            let said = (packet.is_syn(), packet.is_syn_ack(), packet.is_closing());
            assert_eq!(said, (is_syn, is_syn_ack, is_closing), "chunk {chunk}");
            assert_eq!(packet.checksum_offset(), 28);
        }
        assert_eq!(parse::<V4>(&ipv4(0, PROTOCOL_SCTP, &[0; 15])), Err(Unparsed::Short));
    }

    #[test]
    fn only_echo_requests_of_icmp_are_ours() {
        let icmp = |r#type, code| ipv4(0, PROTOCOL_ICMP, &[r#type, code, 0, 0, 0, 0, 0, 0]);
        let packet = parse::<V4>(&icmp(8, 0)).unwrap();
        assert!(packet.is_echo_request());
        assert_eq!((packet.tuple.sport, packet.tuple.dport), (0, 0));
        for bytes in [icmp(0, 0), icmp(8, 1), ipv4(0, PROTOCOL_ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0])] {
            assert_eq!(parse::<V4>(&bytes), Err(Unparsed::NotOurs), "{bytes:?}");
        }
        assert_eq!(parse::<V4>(&icmp(3, 3)), Err(Unparsed::Unusual));
    }

    #[test]
    fn what_is_not_parsed() {
        let mut fragment = ipv4(0, PROTOCOL_UDP, &[0; 8]);
        fragment[6] = 0x20;
        let mut contradiction = ipv4(0, PROTOCOL_UDP, &[0; 8]);
        contradiction[0] = 0x44;
        for (bytes, expected) in [
            (ipv4(0, 1, &[0; 8]), Unparsed::NotOurs),
            (contradiction, Unparsed::NotOurs),
            (fragment, Unparsed::Unusual),
            (ipv4(0, PROTOCOL_UDP, &[0; 7]), Unparsed::Short),
            (ipv4(0, PROTOCOL_TCP, &[0; 19]), Unparsed::Short),
            (vec![0x45; 19], Unparsed::Short),
            (vec![], Unparsed::Short),
        ] {
            assert_eq!(parse::<V4>(&bytes), Err(expected), "{bytes:?}");
        }
    }

    proptest! {
        /// Any bytes, any length: an answer, and never a read outside (run under Miri to see the latter).
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            if let Ok(packet) = parse::<V4>(&bytes) {
                prop_assert!(packet.transport + 8 <= bytes.len());
            }
            if let Ok(packet) = parse::<V6>(&bytes) {
                prop_assert!(packet.transport + 8 <= bytes.len());
            }
        }
    }
}
