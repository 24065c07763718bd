//! The headers of replies, which differ between the families.

use proxy_common::{
    Family, V4, V6, checksum,
    packet::{
        IPV4, IPV4_NO_OPTIONS, IPV6, PROTOCOL_ICMPV6, VERSION_IPV6, WORD, extensions,
        field::{icmp, ipv4, ipv6},
        icmp_types, icmpv6_types,
    },
};

use super::GeneratedReply;
use crate::rewrite::{self, Header};

/// Hop limit of replies.
const HOPS: u8 = 64;

/// Bytes of the transport header that an ICMP error quotes (RFC 792; more is allowed, hosts need this much).
pub(super) const QUOTED: usize = 8;

/// A family's generated replies.
pub(crate) trait ReplyHeaders: Header {
    /// Echo reply, as type in a header's first byte.
    const ECHO_REPLY: u8;

    /// Whether replies may be sent to the address: not to groups, nor to hosts without an address.
    fn is_host(addr: &Self::Addr) -> bool;
    /// Writes a network header: the reply to the packet whose header is `from`, with a payload of `length` bytes.
    ///
    /// # Safety
    /// `header` points to so many writable bytes as the family's header has, `from` to so many readable ones.
    unsafe fn reply(header: *mut u8, from: *const u8, protocol: u8, length: u16);
    /// Changes a quoted header so that the transport header follows it at once.
    ///
    /// # Safety
    /// `header` points to so many writable bytes as the family's header has.
    unsafe fn shorten(header: *mut u8, protocol: u8);
    /// Bytes that [`ReplyHeaders::pad`] puts behind the network header.
    const PADDING: usize;
    /// Writes so many bytes without meaning behind the network header.
    ///
    /// # Safety
    /// `header` points to a network header made by [`ReplyHeaders::reply`], with room for so many bytes behind it.
    unsafe fn pad(header: *mut u8);
    /// Writes the ICMP header of an error, all but its checksum.
    ///
    /// # Safety
    /// `header` points to 8 writable bytes.
    unsafe fn error(header: *mut u8, reply: GeneratedReply, mtu: u16);
    /// Whether the family's ICMP checksum includes the pseudo header.
    const HAS_PSEUDO_HEADER: bool;
}

/// Reads a word of scratch memory.
///
/// # Safety
/// The bytes are readable, and aligned as the word is.
#[inline(always)]
pub(super) unsafe fn word<T: Copy>(at: *const u8) -> T {
    // SAFETY: the caller's promise; scratch memory is aligned to 4, and all words are.
    unsafe { at.cast::<T>().read() }
}

/// An ICMP header's first word, with checksum 0.
#[inline(always)]
const fn type_and_code(r#type: u8, code: u8) -> u32 {
    u32::from_ne_bytes([r#type, code, 0, 0])
}

impl ReplyHeaders for V4 {
    const ECHO_REPLY: u8 = icmp_types::ECHO_REPLY;
    const HAS_PSEUDO_HEADER: bool = false;

    #[inline(always)]
    fn is_host(addr: &u32) -> bool {
        let first = u32::from_be(*addr) >> 24;
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    unsafe fn reply(header: *mut u8, from: *const u8, protocol: u8, length: u16) {
        let at = |offset: usize| header.wrapping_add(offset);
        // SAFETY: the caller's promise.
        unsafe {
            let version_ihl = (IPV4_NO_OPTIONS as u32) << 24;
            rewrite::write(at(ipv4::VERSION_IHL), u32::from_be(version_ihl | (IPV4 as u32 + length as u32)));
            rewrite::write(at(ipv4::IDENTIFICATION), 0u32);
            // With checksum 0.
            rewrite::write(at(ipv4::TTL), u32::from_be((HOPS as u32) << 24 | (protocol as u32) << 16));
            rewrite::write(at(ipv4::SOURCE), word::<u32>(from.wrapping_add(ipv4::DESTINATION)));
            rewrite::write(at(ipv4::DESTINATION), word::<u32>(from.wrapping_add(ipv4::SOURCE)));
            let sum = |offset: usize| V4::sum(&word::<u32>(at(offset)));
            let sum = sum(ipv4::VERSION_IHL)
                + sum(ipv4::IDENTIFICATION)
                + sum(ipv4::TTL)
                + sum(ipv4::SOURCE)
                + sum(ipv4::DESTINATION);
            rewrite::write(at(ipv4::CHECKSUM), !checksum::fold(sum) as u16);
        }
    }

    #[inline(always)]
    unsafe fn shorten(header: *mut u8, _: u8) {
        // SAFETY: the caller's promise.
        unsafe { rewrite::write(header.wrapping_add(ipv4::VERSION_IHL), IPV4_NO_OPTIONS) };
    }

    // Options: their end (0), then only zeros. They add nothing to the checksum.
    const PADDING: usize = 20;

    #[inline(always)]
    unsafe fn pad(header: *mut u8) {
        let before = u16::from_ne_bytes([IPV4_NO_OPTIONS, 0]);
        let after = u16::from_ne_bytes([IPV4_NO_OPTIONS + (Self::PADDING / WORD) as u8, 0]);
        let length = header.wrapping_add(ipv4::TOTAL_LENGTH).cast::<u16>();
        let sum = header.wrapping_add(ipv4::CHECKSUM).cast::<u16>();
        let options = header.wrapping_add(IPV4);
        // SAFETY: the caller's promise.
        unsafe {
            let short = length.read();
            let long = (u16::from_be(short) + Self::PADDING as u16).to_be();
            let change = checksum::difference(before as u32, after as u32)
                + checksum::difference(short as u32, long as u32);
            rewrite::write(header.wrapping_add(ipv4::VERSION_IHL), after);
            length.write(long);
            sum.write(checksum::update(sum.read(), change));
            rewrite::write(options, 0u32);
            rewrite::write(options.wrapping_add(4), 0u32);
            rewrite::write(options.wrapping_add(8), 0u32);
            rewrite::write(options.wrapping_add(12), 0u32);
            rewrite::write(options.wrapping_add(16), 0u32);
        }
    }

    #[inline(always)]
    unsafe fn error(header: *mut u8, reply: GeneratedReply, mtu: u16) {
        use icmp_types::{FRAGMENTATION_NEEDED, PORT_UNREACHABLE, TIME_EXCEEDED, UNREACHABLE};
        let (message, rest) = match reply {
            GeneratedReply::TimeExceeded => (type_and_code(TIME_EXCEEDED, 0), 0),
            GeneratedReply::TooBig => (type_and_code(UNREACHABLE, FRAGMENTATION_NEEDED), mtu as u32),
            _ => (type_and_code(UNREACHABLE, PORT_UNREACHABLE), 0),
        };
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(header.wrapping_add(icmp::TYPE), message);
            rewrite::write(header.wrapping_add(icmp::REST), u32::from_be(rest));
        }
    }
}

impl ReplyHeaders for V6 {
    const ECHO_REPLY: u8 = icmpv6_types::ECHO_REPLY;
    const HAS_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn is_host(addr: &[u32; 4]) -> bool {
        u32::from_be(addr[0]) >> 24 != 0xff && !V6::same(addr, &V6::UNSPECIFIED) && !V6::is_loopback(addr)
    }

    #[inline(always)]
    unsafe fn reply(header: *mut u8, from: *const u8, protocol: u8, length: u16) {
        let at = |offset: usize| header.wrapping_add(offset);
        let copy = |to: usize, offset: usize| {
            // SAFETY: the caller's promise.
            unsafe { rewrite::write(at(to), word::<u32>(from.wrapping_add(offset))) }
        };
        let copy_address = |to: usize, offset: usize| {
            copy(to, offset);
            copy(to + 4, offset + 4);
            copy(to + 8, offset + 8);
            copy(to + 12, offset + 12);
        };
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(at(ipv6::VERSION), u32::from_ne_bytes([VERSION_IPV6 << 4, 0, 0, 0]));
            let next_header_and_hops = (protocol as u32) << 8 | HOPS as u32;
            rewrite::write(
                at(ipv6::PAYLOAD_LENGTH),
                u32::from_be((length as u32) << 16 | next_header_and_hops),
            );
        }
        copy_address(ipv6::SOURCE, ipv6::DESTINATION);
        copy_address(ipv6::DESTINATION, ipv6::SOURCE);
    }

    #[inline(always)]
    unsafe fn shorten(header: *mut u8, protocol: u8) {
        // SAFETY: the caller's promise.
        unsafe { rewrite::write(header.wrapping_add(ipv6::NEXT_HEADER), protocol) };
    }

    // One destination option for experiments, which hosts skip if they do not know it (RFC 4727). Not a padding
    // option: Linux requires its content to be zero.
    const PADDING: usize = 24;

    #[inline(always)]
    unsafe fn pad(header: *mut u8) {
        const OPTION: u32 = 0x1e;
        const EXTENSION: u32 = (PROTOCOL_ICMPV6 as u32) << 24
            | (V6::PADDING as u32 / 8 - 1) << 16
            | OPTION << 8
            | (V6::PADDING as u32 - 4);
        let length = header.wrapping_add(ipv6::PAYLOAD_LENGTH).cast::<u16>();
        let options = header.wrapping_add(IPV6);
        // SAFETY: the caller's promise.
        unsafe {
            length.write((u16::from_be(length.read()) + Self::PADDING as u16).to_be());
            rewrite::write(header.wrapping_add(ipv6::NEXT_HEADER), extensions::DESTINATION);
            rewrite::write(options, u32::from_be(EXTENSION));
            rewrite::write(options.wrapping_add(4), 0u32);
            rewrite::write(options.wrapping_add(8), 0u32);
            rewrite::write(options.wrapping_add(12), 0u32);
            rewrite::write(options.wrapping_add(16), 0u32);
            rewrite::write(options.wrapping_add(20), 0u32);
        }
    }

    #[inline(always)]
    unsafe fn error(header: *mut u8, reply: GeneratedReply, mtu: u16) {
        use icmpv6_types::{PORT_UNREACHABLE, TIME_EXCEEDED, TOO_BIG, UNREACHABLE};
        let (message, rest) = match reply {
            GeneratedReply::TimeExceeded => (type_and_code(TIME_EXCEEDED, 0), 0),
            GeneratedReply::TooBig => (type_and_code(TOO_BIG, 0), mtu as u32),
            _ => (type_and_code(UNREACHABLE, PORT_UNREACHABLE), 0),
        };
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(header.wrapping_add(icmp::TYPE), message);
            rewrite::write(header.wrapping_add(icmp::REST), u32::from_be(rest));
        }
    }
}
