//! The headers of answers, which differ between the families.

use proxy_common::{
    Family, V4, V6, checksum,
    packet::{ICMP, IPV4, PROTOCOL_ICMP, PROTOCOL_ICMPV6},
};

use crate::rewrite::{self, Header};

/// Hop limit of answers.
const HOPS: u8 = 64;

/// Bytes of the transport header that a refusal quotes (RFC 792; more is allowed, this is what hosts need).
pub(super) const QUOTED: usize = 8;

/// A family's answers.
pub(crate) trait Answers: Header {
    /// Bytes of a refusal from the network header on.
    const REFUSAL: usize = 2 * Self::HEADER + ICMP + QUOTED;
    /// Echo reply, as type in a header's first byte.
    const ECHO_REPLY: u8;

    /// Is it an address that answers may be sent to? Not to groups, nor to hosts without an address.
    fn is_host(addr: &Self::Addr) -> bool;
    /// Writes a network header: the answer to the packet whose header is `from`, with a payload of `length` bytes.
    ///
    /// # Safety
    /// `header` points to so many writable bytes as the family's header has, `from` to so many readable ones.
    unsafe fn answer(header: *mut u8, from: *const u8, protocol: u8, length: u16);
    /// Where such a header has its addresses, the source first.
    const ADDRESSES: usize;
    /// Writes the header of a refusal, all but its checksum.
    ///
    /// # Safety
    /// `header` points to [`ICMP`] writable bytes.
    unsafe fn unreachable(header: *mut u8);
    /// The protocol number of refusals.
    const PROTOCOL: u8;
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

impl Answers for V4 {
    const ECHO_REPLY: u8 = 0;
    const PROTOCOL: u8 = PROTOCOL_ICMP;
    const ADDRESSES: usize = 12;
    const HAS_PSEUDO_HEADER: bool = false;

    #[inline(always)]
    fn is_host(addr: &u32) -> bool {
        let first = u32::from_be(*addr) >> 24;
        first != 0 && first != 127 && first < 224
    }

    #[inline(always)]
    unsafe fn answer(header: *mut u8, from: *const u8, protocol: u8, length: u16) {
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
    unsafe fn unreachable(header: *mut u8) {
        // SAFETY: the caller's promise. Type 3, code 3: port unreachable.
        unsafe {
            rewrite::write(header, u32::from_be(0x0303_0000));
            rewrite::write(header.wrapping_add(4), 0u32);
        }
    }
}

impl Answers for V6 {
    const ECHO_REPLY: u8 = 129;
    const PROTOCOL: u8 = PROTOCOL_ICMPV6;
    const ADDRESSES: usize = 8;
    const HAS_PSEUDO_HEADER: bool = true;

    #[inline(always)]
    fn is_host(addr: &[u32; 4]) -> bool {
        u32::from_be(addr[0]) >> 24 != 0xff && !V6::same(addr, &V6::UNSPECIFIED) && !V6::is_loopback(addr)
    }

    #[inline(always)]
    unsafe fn answer(header: *mut u8, from: *const u8, protocol: u8, length: u16) {
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
    unsafe fn unreachable(header: *mut u8) {
        // SAFETY: the caller's promise. Type 1, code 4: port unreachable (RFC 4443 section 3.1).
        unsafe {
            rewrite::write(header, u32::from_be(0x0104_0000));
            rewrite::write(header.wrapping_add(4), 0u32);
        }
    }
}
