//! IPv4 headers.

use super::{
    Bytes, IPV4, IPV4_NO_OPTIONS, PROTOCOL_ICMP, Packet, Parse, Unparsed, VERSION_IPV4, WORD, dissect,
    field::ipv4,
    icmp_types, ipv4_fragment, read,
    transport::{Bounds, transport},
    word,
};
use crate::V4;

impl Parse for V4 {
    const HEADER: usize = IPV4;
    const ADDRESSES: usize = ipv4::SOURCE;
    type Words = [u32; word(IPV4)];
    const ICMP: u8 = PROTOCOL_ICMP;

    /// Destination unreachable, source quench, time exceeded, parameter problem (RFC 792).
    #[inline(always)]
    fn is_error(r#type: u8) -> bool {
        matches!(
            r#type,
            icmp_types::UNREACHABLE
                | icmp_types::SOURCE_QUENCH
                | icmp_types::TIME_EXCEEDED
                | icmp_types::PARAMETER_PROBLEM
        )
    }

    #[inline(always)]
    unsafe fn total_length(header: *const u8) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { u16::from_be(read(header.wrapping_add(ipv4::TOTAL_LENGTH))) as u32 }
    }

    #[inline(always)]
    fn network<B: Bytes + ?Sized>(words: &Self::Words, at: usize, _: &B) -> Option<dissect::Network<Self>> {
        dissect::read_ipv4(words, at)
    }

    #[inline(always)]
    unsafe fn parse_as<const WITHOUT_OPTIONS: bool>(
        data: *const u8,
        end: *const u8,
        network: usize,
    ) -> Result<Packet<Self>, Unparsed> {
        let ip = data.wrapping_add(network);
        if ip.wrapping_add(IPV4) > end {
            return Err(Unparsed::Short);
        }
        // SAFETY: the header's 20 bytes were just found to be readable.
        let (version_ihl, fragment, hop_limit, protocol, src, dst) = unsafe {
            (
                read::<u8>(ip.wrapping_add(ipv4::VERSION_IHL)),
                read::<u16>(ip.wrapping_add(ipv4::FRAGMENT)),
                read::<u8>(ip.wrapping_add(ipv4::TTL)),
                read::<u8>(ip.wrapping_add(ipv4::PROTOCOL)),
                read::<u32>(ip.wrapping_add(ipv4::SOURCE)),
                read::<u32>(ip.wrapping_add(ipv4::DESTINATION)),
            )
        };
        let length = if WITHOUT_OPTIONS { IPV4 } else { ((version_ihl & 0xf) as usize) * WORD };
        if version_ihl >> 4 != VERSION_IPV4
            || length < IPV4
            || WITHOUT_OPTIONS && version_ihl != IPV4_NO_OPTIONS
        {
            return Err(Unparsed::NotOurs);
        }
        if u16::from_be(fragment) & ipv4_fragment::IS_FRAGMENT != 0 {
            return Err(Unparsed::SlowPath);
        }
        // SAFETY: the caller's promise.
        unsafe {
            transport::<_, WITHOUT_OPTIONS>(
                Bounds { data, end, echo: icmp_types::ECHO_REQUEST },
                network + length,
                protocol,
                hop_limit,
                src,
                dst,
            )
        }
    }
}
