//! Transport headers.

use super::{
    Bytes, ICMP, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Parse, SCTP, TCP, UDP, Unparsed,
    field::{icmp, ports, sctp, tcp},
    read, sctp_chunks, tcp_flags, word,
};
use crate::layout::flow::Tuple;

/// The readable bytes of a transport header.
pub(super) struct Bounds {
    pub(super) data: *const u8,
    pub(super) end: *const u8,
    /// Type of the family's echo requests.
    pub(super) echo: u8,
}

/// # Safety
/// All bytes from `data` up to `end` are readable.
#[inline(always)]
pub(super) unsafe fn transport<F: Parse, const WITHOUT_OPTIONS: bool>(
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
                sequence = u32::from_be(read(header.wrapping_add(tcp::SEQUENCE)));
                acknowledgment = u32::from_be(read(header.wrapping_add(tcp::ACKNOWLEDGMENT)));
                read::<u8>(header.wrapping_add(tcp::FLAGS))
            }
        }
        PROTOCOL_UDP => {
            if header.wrapping_add(UDP) > end {
                return Err(Unparsed::Short);
            }
            0
        }
        PROTOCOL_SCTP if !WITHOUT_OPTIONS => {
            if header.wrapping_add(SCTP) > end {
                return Err(Unparsed::Short);
            }
            // SAFETY: within the 16 bytes just checked.
            flags_of_chunk(unsafe { read::<u8>(header.wrapping_add(sctp::CHUNK_TYPE)) })
        }
        protocol if !WITHOUT_OPTIONS && protocol == F::ICMP => {
            if header.wrapping_add(ICMP) > end {
                return Err(Unparsed::Short);
            }
            // SAFETY: within the 8 bytes just checked.
            let (r#type, code) = unsafe {
                (read::<u8>(header.wrapping_add(icmp::TYPE)), read::<u8>(header.wrapping_add(icmp::CODE)))
            };
            if F::is_error(r#type) {
                return Err(Unparsed::SlowPath);
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
    let (sport, dport) = unsafe {
        (
            read::<u16>(header.wrapping_add(ports::SOURCE)),
            read::<u16>(header.wrapping_add(ports::DESTINATION)),
        )
    };
    let tuple = Tuple { src, dst, sport, dport };
    let (transport, follows) = (offset, false);
    Ok(Packet { tuple, protocol, tcp_flags, hop_limit, sequence, acknowledgment, transport, follows })
}

/// The timestamp of a TCP packet with SYN or FIN whose header starts at offset `transport` (RFC 7323); 0: none.
///
/// Read only at the places where common systems write it, without a loop over options. With SYN behind MSS and
/// SACK-permitted (Linux), or behind MSS and window scale (BSD, macOS); else behind two bytes of padding (RFC
/// 7323 appendix A).
#[inline(always)]
pub fn timestamp<B: Bytes + ?Sized>(bytes: &B, transport: usize, is_syn: bool) -> u32 {
    /// Kind and length of the option.
    const TIMESTAMP: u32 = 0x080a;
    /// The option in words: half a word with kind and length, the timestamp, and that of the other side.
    const LENGTH: u32 = 3;
    const HEADER: u32 = word(TCP) as u32;
    /// Offset of the options in words, from the word with the header's length.
    const OPTIONS: usize = word(TCP - tcp::DATA_OFFSET);
    let is_option = |word: u32| u32::from_be(word) & 0xffff == TIMESTAMP;
    if is_syn {
        let Some(words) = bytes.load::<[u32; 6]>(transport + tcp::DATA_OFFSET) else { return 0 };
        let length = u32::from_be(words[0]) >> 28;
        if length > HEADER + LENGTH && is_option(words[OPTIONS + 1]) {
            return u32::from_be(words[OPTIONS + 2]);
        }
        if length > HEADER + LENGTH + 1 && is_option(words[OPTIONS + 2]) {
            return u32::from_be(words[OPTIONS + 3]);
        }
        return 0;
    }
    match bytes.load::<[u32; 4]>(transport + tcp::DATA_OFFSET) {
        Some(words) if u32::from_be(words[0]) >> 28 >= HEADER + LENGTH && is_option(words[OPTIONS]) => {
            u32::from_be(words[OPTIONS + 1])
        }
        _ => 0,
    }
}

/// The TCP flags that correspond to an SCTP chunk.
#[inline(always)]
pub(super) fn flags_of_chunk(chunk: u8) -> u8 {
    match chunk {
        sctp_chunks::INIT => tcp_flags::SYN,
        sctp_chunks::INIT_ACK => tcp_flags::SYN | tcp_flags::ACK,
        sctp_chunks::ABORT | sctp_chunks::SHUTDOWN_COMPLETE => tcp_flags::RST,
        _ => tcp_flags::ACK,
    }
}
