//! IPv4 headers.

use super::{
    Bytes, IPV4, PROTOCOL_ICMP, Packet, Parse, Unparsed, dissect, read,
    transport::{Bounds, transport},
};
use crate::V4;

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
    unsafe fn parse_as<const WITHOUT_OPTIONS: bool>(
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
        let length = if WITHOUT_OPTIONS { IPV4 } else { ((version_ihl & 0xf) as usize) * 4 };
        if version_ihl >> 4 != 4 || length < IPV4 || WITHOUT_OPTIONS && version_ihl != 0x45 {
            return Err(Unparsed::NotOurs);
        }
        if u16::from_be(fragment) & FRAGMENT != 0 {
            return Err(Unparsed::SlowPath);
        }
        // SAFETY: the caller's promise.
        unsafe {
            transport::<_, WITHOUT_OPTIONS>(
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
