//! Changes to the bytes of a frame before a program gets it.

/// A change to the bytes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nothing.
    Whole,
    /// This many bytes follow the packet.
    Padded(usize),
    /// Cut off at this length, if it is longer.
    Cut(usize),
    /// A VLAN tag is in the frame.
    Tagged,
    /// It is for another host.
    Overheard,
    /// These extension headers follow the IPv6 header; an IPv4 packet stays unchanged.
    Extended(Vec<u8>),
    /// Only its first fragment, or only the others.
    Fragment {
        /// The first?
        is_first: bool,
    },
    /// Bytes behind the Ethernet header are changed: where, modulo the length, and by which bits.
    Noise(Vec<(usize, u8)>),
}

pub(super) const ETHERNET: usize = 14;

// Numbers of IPv6's extension headers (RFC 8200 section 4).
pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
pub(super) const DESTINATION: u8 = 60;

fn is_ipv6(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd]
}

/// Puts an extension header of 8 bytes behind the IPv6 header: `rest` follows its first byte.
fn extend(frame: &mut Vec<u8>, header: u8, rest: [u8; 7]) {
    const NEXT: usize = ETHERNET + 6;
    let next = std::mem::replace(&mut frame[NEXT], header);
    let transport = ETHERNET + 40;
    frame.splice(transport..transport, std::iter::once(next).chain(rest));
    set_length(frame);
}

/// Writes the length that a frame has into its network header, and that header's checksum.
fn set_length(frame: &mut [u8]) {
    let length = (frame.len() - ETHERNET) as u16;
    if is_ipv6(frame) {
        frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&(length - 40).to_be_bytes());
        return;
    }
    frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
    frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    let header = &frame[ETHERNET..][..(frame[ETHERNET] & 0xf) as usize * 4];
    let sum: u32 = header.chunks(2).map(|word| u16::from_be_bytes([word[0], word[1]]) as u32).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// Makes the first fragment of a packet, or the rest. Packets with less data become a single fragment.
fn fragment(frame: &mut Vec<u8>, is_first: bool) {
    /// Bytes of the first fragment, in its unit of 8.
    const UNITS: u16 = 4;
    let is_ipv6 = is_ipv6(frame);
    let transport = ETHERNET + if is_ipv6 { 40 } else { (frame[ETHERNET] & 0xf) as usize * 4 };
    let cut = frame.len().min(transport + 8 * UNITS as usize);
    if is_first {
        frame.truncate(cut);
    } else {
        frame.drain(transport..cut);
    }
    if is_ipv6 {
        let place = if is_first { 1u16 } else { UNITS << 3 }.to_be_bytes();
        extend(frame, FRAGMENT, [0, place[0], place[1], 0xbe, 0xef, 0, 1]);
    } else {
        let place = if is_first { 1u16 << 13 } else { UNITS }.to_be_bytes();
        frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&place);
        set_length(frame);
    }
}

impl Shape {
    /// Whether the frame still matches its headers.
    pub(super) fn is_sound(&self) -> bool {
        matches!(self, Self::Whole | Self::Padded(_))
    }

    /// Does it to the bytes of a frame.
    pub(super) fn apply(&self, mut frame: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Whole => {}
            Self::Padded(bytes) => frame.extend(std::iter::repeat_n(0xa5, *bytes)),
            Self::Cut(length) => frame.truncate(*length),
            Self::Tagged => drop(frame.splice(12..12, [0x81, 0, 0, 7])),
            Self::Overheard => frame[..6].copy_from_slice(&[2, 0, 0, 0, 9, 9]),
            Self::Extended(headers) if is_ipv6(&frame) => {
                // From the last to the first, each in front of the others.
                headers.iter().rev().for_each(|header| extend(&mut frame, *header, [0; 7]));
            }
            Self::Extended(_) => {}
            Self::Fragment { is_first } => fragment(&mut frame, *is_first),
            Self::Noise(changes) => {
                let length = frame.len() - ETHERNET;
                let is_ipv6 = is_ipv6(&frame);
                // A packet whose source is a multicast address the kernel routes nowhere, as IPv6 has it.
                let is_source = |at: usize| is_ipv6 && at == 8;
                let changes = changes.iter().map(|(at, bits)| (at % length, bits));
                for (at, bits) in changes.filter(|(at, _)| !is_source(*at)) {
                    frame[ETHERNET + at] ^= bits;
                }
            }
        }
        frame
    }
}
