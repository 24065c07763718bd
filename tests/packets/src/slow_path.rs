//! Frames that are not simply a packet: ICMP errors, fragments, extension headers. Made from the bytes of ordinary ones.

use std::net::IpAddr;

use anyhow::{Result, bail};
use etherparse::PacketBuilder;
use proxy_common::packet::{ETHERNET, IPV4, IPV6, extensions};

use super::frame::sum;

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No socket listens there.
    PortUnreachable,
    /// The hop limit ran out.
    TimeExceeded,
    /// Longer than this MTU.
    TooBig(u16),
}

impl IcmpError {
    /// Type, code and the second word, for IPv4 or IPv6 (RFC 792, RFC 4443).
    fn header(self, is_v4: bool) -> (u8, u8, [u8; 4]) {
        let mtu = |mtu: u16| [&[0, 0][..], &mtu.to_be_bytes()].concat().try_into().unwrap_or_default();
        match (self, is_v4) {
            (Self::PortUnreachable, true) => (3, 3, [0; 4]),
            (Self::PortUnreachable, false) => (1, 4, [0; 4]),
            (Self::TimeExceeded, true) => (11, 0, [0; 4]),
            (Self::TimeExceeded, false) => (3, 0, [0; 4]),
            (Self::TooBig(bytes), true) => (3, 4, mtu(bytes)),
            (Self::TooBig(bytes), false) => (2, 0, mtu(bytes)),
        }
    }
}

/// Whether it is a frame with an IPv4 packet.
fn is_v4(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0]
}

/// The ICMP error of some host about a frame, to its sender, which quotes `quoted` bytes of it at most.
///
/// # Errors
/// When the addresses are of two families.
pub fn icmp_error(
    error: IcmpError,
    (from, to): (IpAddr, IpAddr),
    hop_limit: u8,
    about: &[u8],
    quoted: usize,
) -> Result<Vec<u8>> {
    let quote = &about[ETHERNET..about.len().min(ETHERNET + quoted)];
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    let (kind, code, rest) = error.header(from.is_ipv4());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let builder = builder.ipv4(from.octets(), to.octets(), hop_limit);
            builder.icmpv4_raw(kind, code, rest).write(&mut frame, quote)?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let builder = builder.ipv6(from.octets(), to.octets(), hop_limit);
            builder.icmpv6_raw(kind, code, rest).write(&mut frame, quote)?;
        }
        _ => bail!("two families"),
    }
    Ok(frame)
}

/// Cuts the packet of a frame into fragments of `size` bytes, a multiple of 8, behind the network header.
pub fn fragments(frame: &[u8], identification: u16, size: usize) -> Vec<Vec<u8>> {
    let header = if is_v4(frame) { usize::from(frame[ETHERNET] & 0xf) * 4 } else { IPV6 };
    let (head, payload) = frame.split_at(ETHERNET + header);
    let mut offset = 0;
    let mut pieces = Vec::new();
    for piece in payload.chunks(size) {
        let has_more = offset + piece.len() < payload.len();
        let mut bytes = head.to_vec();
        if is_v4(frame) {
            bytes[18..20].copy_from_slice(&identification.to_be_bytes());
            let word = (offset / 8) as u16 | if has_more { 0x2000 } else { 0 };
            bytes[20..22].copy_from_slice(&word.to_be_bytes());
            bytes.extend(piece);
            let length = (bytes.len() - ETHERNET) as u16;
            bytes[16..18].copy_from_slice(&length.to_be_bytes());
            bytes[24..26].fill(0);
            let checksum = !(sum(&bytes[ETHERNET..ETHERNET + header]) as u16);
            bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let next = std::mem::replace(&mut bytes[20], extensions::FRAGMENT);
            let word = offset as u16 | u16::from(has_more);
            bytes.extend([next, 0]);
            bytes.extend(word.to_be_bytes());
            bytes.extend(u32::from(identification).to_be_bytes());
            bytes.extend(piece);
            set_ipv6_length(&mut bytes);
        }
        pieces.push(bytes);
        offset += piece.len();
    }
    pieces
}

/// Puts headers of options of 8 bytes each, of these types, behind the IPv6 header of a frame.
pub fn with_extensions(frame: &[u8], types: &[u8]) -> Vec<u8> {
    let mut bytes = frame[..ETHERNET + IPV6].to_vec();
    let mut next_at = 20;
    let last = bytes[next_at];
    for &header in types {
        bytes[next_at] = header;
        next_at = bytes.len();
        // An option of padding fills it.
        bytes.extend([0, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes[next_at] = last;
    bytes.extend(&frame[ETHERNET + IPV6..]);
    set_ipv6_length(&mut bytes);
    bytes
}

fn set_ipv6_length(bytes: &mut [u8]) {
    let length = (bytes.len() - ETHERNET - IPV6) as u16;
    bytes[18..20].copy_from_slice(&length.to_be_bytes());
}

/// Bytes of the shortest network header of a family.
pub fn header(is_v4: bool) -> usize {
    if is_v4 { IPV4 } else { IPV6 }
}
