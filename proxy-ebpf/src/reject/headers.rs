//! The headers of replies, which differ between the families.

use proxy_common::{
    Family, V4, V6, checksum,
    packet::{IPV4, IPV6, PROTOCOL_ICMPV6, extensions},
};

use super::GeneratedReply;
use crate::rewrite::{self, Header};

/// Hop limit of replies.
const HOPS: u8 = 64;

/// The first byte of an IPv4 header without options.
const NO_OPTIONS: u8 = 0x45;

/// Bytes of the transport header that an ICMP error quotes (RFC 792; more is allowed, this is what hosts need).
pub(super) const QUOTED: usize = 8;

/// A family's generated replies.
pub(crate) trait ReplyHeaders: Header {
    /// Echo reply, as type in a header's first byte.
    const ECHO_REPLY: u8;

    /// Is it an address that replies may be sent to? Not to groups, nor to hosts without an address.
    fn is_host(addr: &Self::Addr) -> bool;
    /// Writes a network header: the reply to the packet whose header is `from`, with a payload of `length` bytes.
    ///
    /// # Safety
    /// `header` points to so many writable bytes as the family's header has, `from` to so many readable ones.
    unsafe fn reply(header: *mut u8, from: *const u8, protocol: u8, length: u16);
    /// Makes a quoted header say that the transport header follows it at once.
    ///
    /// # Safety
    /// `header` points to so many writable bytes as the family's header has.
    unsafe fn shorten(header: *mut u8, protocol: u8);
    /// Bytes that [`ReplyHeaders::pad`] puts behind the network header.
    const PADDING: usize;
    /// Puts so many bytes behind the network header that mean nothing.
    ///
    /// # Safety
    /// `header` points to a network header made by [`ReplyHeaders::reply`], with room for so many bytes behind it.
    unsafe fn pad(header: *mut u8);
    /// Writes the ICMP header of an error, all but its checksum.
    ///
    /// # Safety
    /// `header` points to 8 writable bytes.
    unsafe fn error(header: *mut u8, reply: GeneratedReply, mtu: u16);
    /// Is the pseudo header part of the family's ICMP checksum?
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

impl ReplyHeaders for V4 {
    const ECHO_REPLY: u8 = 0;
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
            rewrite::write(at(0), u32::from_be(0x4500_0000 | (IPV4 as u32 + length as u32)));
            rewrite::write(at(4), 0u32);
            rewrite::write(at(8), u32::from_be((HOPS as u32) << 24 | (protocol as u32) << 16));
            rewrite::write(at(12), word::<u32>(from.wrapping_add(16)));
            rewrite::write(at(16), word::<u32>(from.wrapping_add(12)));
            let sum = |offset: usize| V4::sum(&word::<u32>(at(offset)));
            let sum = sum(0) + sum(4) + sum(8) + sum(12) + sum(16);
            rewrite::write(at(10), !checksum::fold(sum) as u16);
        }
    }

    #[inline(always)]
    unsafe fn shorten(header: *mut u8, _: u8) {
        // SAFETY: the caller's promise.
        unsafe { rewrite::write(header, NO_OPTIONS) };
    }

    // Behind the end of the options (0), only zeros. What is summed besides makes nothing, and so nothing changes.
    const PADDING: usize = 20;

    #[inline(always)]
    unsafe fn pad(header: *mut u8) {
        let before = u16::from_ne_bytes([NO_OPTIONS, 0]);
        let after = u16::from_ne_bytes([NO_OPTIONS + Self::PADDING as u8 / 4, 0]);
        let length = header.wrapping_add(2).cast::<u16>();
        let sum = header.wrapping_add(10).cast::<u16>();
        let options = header.wrapping_add(IPV4);
        // SAFETY: the caller's promise.
        unsafe {
            let short = length.read();
            let long = (u16::from_be(short) + Self::PADDING as u16).to_be();
            let change = checksum::difference(before as u32, after as u32)
                + checksum::difference(short as u32, long as u32);
            rewrite::write(header, after);
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
        // Type and code (RFC 792).
        let (what, rest) = match reply {
            GeneratedReply::TimeExceeded => (0x0b00_0000, 0),
            GeneratedReply::TooBig => (0x0304_0000, mtu as u32),
            _ => (0x0303_0000, 0),
        };
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(header, u32::from_be(what));
            rewrite::write(header.wrapping_add(4), u32::from_be(rest));
        }
    }
}

impl ReplyHeaders for V6 {
    const ECHO_REPLY: u8 = 129;
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
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(at(0), u32::from_be(0x6000_0000));
            rewrite::write(at(4), u32::from_be((length as u32) << 16 | (protocol as u32) << 8 | HOPS as u32));
        }
        copy(8, 24);
        copy(12, 28);
        copy(16, 32);
        copy(20, 36);
        copy(24, 8);
        copy(28, 12);
        copy(32, 16);
        copy(36, 20);
    }

    #[inline(always)]
    unsafe fn shorten(header: *mut u8, protocol: u8) {
        // SAFETY: the caller's promise.
        unsafe { rewrite::write(header.wrapping_add(6), protocol) };
    }

    // One destination option that is for experiments, and that hosts skip if they do not know it (RFC 4727). Not padding:
    // Linux wants that to be zero.
    const PADDING: usize = 24;

    #[inline(always)]
    unsafe fn pad(header: *mut u8) {
        const OPTION: u32 = 0x1e;
        const EXTENSION: u32 = (PROTOCOL_ICMPV6 as u32) << 24
            | (V6::PADDING as u32 / 8 - 1) << 16
            | OPTION << 8
            | (V6::PADDING as u32 - 4);
        let length = header.wrapping_add(4).cast::<u16>();
        let options = header.wrapping_add(IPV6);
        // SAFETY: the caller's promise.
        unsafe {
            length.write((u16::from_be(length.read()) + Self::PADDING as u16).to_be());
            rewrite::write(header.wrapping_add(6), extensions::DESTINATION);
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
        // Type and code (RFC 4443 section 3).
        let (what, rest) = match reply {
            GeneratedReply::TimeExceeded => (0x0300_0000, 0),
            GeneratedReply::TooBig => (0x0200_0000, mtu as u32),
            _ => (0x0104_0000, 0),
        };
        // SAFETY: the caller's promise.
        unsafe {
            rewrite::write(header, u32::from_be(what));
            rewrite::write(header.wrapping_add(4), u32::from_be(rest));
        }
    }
}
