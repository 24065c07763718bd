//! IPv6 headers.

use super::{
    Bytes, IPV6, PROTOCOL_ICMPV6, Packet, Parse, Unparsed, dissect, extensions, read,
    transport::{Bounds, transport},
};
use crate::V6;

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
    unsafe fn parse_as<const WITHOUT_OPTIONS: bool>(
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
            return Err(Unparsed::SlowPath);
        }
        // SAFETY: the caller's promise.
        unsafe {
            transport::<_, WITHOUT_OPTIONS>(
                Bounds { data, end, echo: 128 },
                network + IPV6,
                next,
                hop_limit,
                src,
                dst,
            )
        }
    }
}
