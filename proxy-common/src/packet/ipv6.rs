//! IPv6 headers.

use super::{
    Bytes, IPV6, PROTOCOL_ICMPV6, Packet, Parse, Unparsed, VERSION_IPV6, dissect, extensions,
    field::ipv6,
    icmpv6_types, read,
    transport::{Bounds, transport},
    word,
};
use crate::V6;

impl Parse for V6 {
    const HEADER: usize = IPV6;
    const ADDRESSES: usize = ipv6::SOURCE;
    type Words = [u32; word(IPV6)];
    const ICMP: u8 = PROTOCOL_ICMPV6;

    /// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
    #[inline(always)]
    fn is_error(r#type: u8) -> bool {
        matches!(
            r#type,
            icmpv6_types::UNREACHABLE
                | icmpv6_types::TOO_BIG
                | icmpv6_types::TIME_EXCEEDED
                | icmpv6_types::PARAMETER_PROBLEM
        )
    }

    #[inline(always)]
    unsafe fn total_length(header: *const u8) -> u32 {
        // SAFETY: the caller's promise.
        IPV6 as u32 + unsafe { u16::from_be(read(header.wrapping_add(ipv6::PAYLOAD_LENGTH))) as u32 }
    }

    #[inline(always)]
    fn network<B: Bytes + ?Sized>(
        words: &Self::Words,
        at: usize,
        bytes: &B,
    ) -> Option<dissect::Network<Self>> {
        dissect::read_ipv6(words, at, bytes)
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
            // By words: the compiler would copy an array with a call.
            let address = |at: usize| {
                let word = |index: usize| read::<u32>(ip.wrapping_add(at + size_of::<u32>() * index));
                [word(0), word(1), word(2), word(3)]
            };
            (
                read::<u8>(ip.wrapping_add(ipv6::VERSION)) >> 4,
                read::<u8>(ip.wrapping_add(ipv6::NEXT_HEADER)),
                read::<u8>(ip.wrapping_add(ipv6::HOP_LIMIT)),
                address(ipv6::SOURCE),
                address(ipv6::DESTINATION),
            )
        };
        if version != VERSION_IPV6 {
            return Err(Unparsed::NotOurs);
        }
        if extensions::is_extension(next) {
            return Err(Unparsed::SlowPath);
        }
        // SAFETY: the caller's promise.
        unsafe {
            transport::<_, WITHOUT_OPTIONS>(
                Bounds { data, end, echo: icmpv6_types::ECHO_REQUEST },
                network + IPV6,
                next,
                hop_limit,
                src,
                dst,
            )
        }
    }
}
