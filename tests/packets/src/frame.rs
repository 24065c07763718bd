//! Frames: made with checksums computed from scratch, and compared.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header,
    PacketBuilder, TcpHeader,
};
use proxy_common::packet::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP};

/// SCTP's checksum.
const CRC32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// The transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these flags (RFC 9293 bits).
    Tcp(u8),
    /// UDP.
    Udp,
    /// UDP without checksum (IPv4 only).
    UdpUnchecked,
    /// SCTP with one chunk of this type.
    Sctp(u8),
    /// An echo request, or with `true` its reply; ports are not part of it.
    Echo(bool),
}

impl Transport {
    /// The IP protocol number.
    pub fn protocol(self) -> u8 {
        match self {
            Self::Tcp(_) => PROTOCOL_TCP,
            Self::Udp | Self::UdpUnchecked => PROTOCOL_UDP,
            Self::Sctp(_) => PROTOCOL_SCTP,
            Self::Echo(_) => PROTOCOL_ICMP,
        }
    }

    /// TCP's flags; 0 for UDP.
    pub fn flags(self) -> u8 {
        if let Self::Tcp(flags) = self { flags } else { 0 }
    }
}

/// A frame to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Destination MAC.
    pub to: [u8; 6],
    /// Source MAC.
    pub from: [u8; 6],
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// The transport header.
    pub transport: Transport,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The whole byte: DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of IPv4 options: a multiple of 4 up to 40.
    pub options: usize,
    /// The payload.
    pub payload: Vec<u8>,
    /// TCP: initial sequence numbers of the sender and of the receiver. Sequence and acknowledgment number follow from them, as of a
    /// packet behind the handshake.
    pub initial: [u32; 2],
    /// TCP: how much farther sequence and acknowledgment number are.
    pub skew: [u32; 2],
    /// TCP: options, a multiple of 4 bytes up to 40.
    pub tcp_options: Vec<u8>,
}

/// Initial sequence number of the sender of [`Frame::new`].
pub const CLIENT_ISN: u32 = 0x1234_5678;
/// Initial sequence number of the other side.
pub const SERVER_ISN: u32 = 0x8765_4321;

impl Frame {
    /// A frame with everything else as usual.
    pub fn new(src: SocketAddr, dst: SocketAddr, transport: Transport) -> Self {
        Self {
            to: [2, 0, 0, 0, 0, 1],
            from: [2, 0, 0, 0, 0, 2],
            src,
            dst,
            transport,
            hop_limit: 64,
            traffic_class: 0xb9,
            options: 0,
            payload: b"payload".to_vec(),
            initial: [CLIENT_ISN, SERVER_ISN],
            skew: [0; 2],
            tcp_options: Vec::new(),
        }
    }

    /// The same with sequence and acknowledgment number farther on.
    pub fn skewed(self, sequence: u32, acknowledgment: u32) -> Self {
        Self { skew: [sequence, acknowledgment], ..self }
    }

    /// Sequence and acknowledgment number of a TCP packet.
    fn numbers(&self, flags: u8) -> [u32; 2] {
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        let [own, other] = self.initial;
        let sequence = own.wrapping_add(u32::from(flags & SYN == 0));
        let acknowledgment = if flags & ACK == 0 { 0 } else { other.wrapping_add(1) };
        [sequence.wrapping_add(self.skew[0]), acknowledgment.wrapping_add(self.skew[1])]
    }

    /// The same with other ends.
    pub fn between(&self, src: SocketAddr, dst: SocketAddr) -> Self {
        Self { src, dst, ..self.clone() }
    }

    /// The reply to it: ends swapped.
    pub fn reply(&self) -> Self {
        let [own, other] = self.initial;
        Self {
            initial: [other, own],
            skew: [0; 2],
            tcp_options: Vec::new(),
            ..self.between(self.dst, self.src)
        }
    }

    /// The same as a router passes it on.
    pub fn one_hop_less(mut self) -> Self {
        self.hop_limit -= 1;
        self
    }

    /// The same with other MACs.
    pub fn with_macs(mut self, to: [u8; 6], from: [u8; 6]) -> Self {
        (self.to, self.from) = (to, from);
        self
    }

    /// Where the transport header starts.
    pub fn transport_offset(&self) -> usize {
        if self.src.is_ipv4() { 34 + self.options } else { 54 }
    }

    /// The bytes.
    ///
    /// # Errors
    /// When the ends are of two families, or etherparse refuses.
    pub fn build(&self) -> anyhow::Result<Vec<u8>> {
        let builder = PacketBuilder::ethernet2(self.from, self.to).ip(self.network()?);
        let mut bytes = Vec::new();
        match self.transport {
            Transport::Tcp(flags) => {
                let [sequence, acknowledgment] = self.numbers(flags);
                let mut tcp = TcpHeader::new(self.src.port(), self.dst.port(), sequence, 0xffff);
                tcp.acknowledgment_number = acknowledgment;
                tcp.fin = flags & 1 != 0;
                tcp.syn = flags & 2 != 0;
                tcp.rst = flags & 4 != 0;
                tcp.psh = flags & 8 != 0;
                tcp.ack = flags & 16 != 0;
                tcp.urg = flags & 32 != 0;
                tcp.set_options_raw(&self.tcp_options)?;
                builder.tcp_header(tcp).write(&mut bytes, &self.payload)?;
            }
            Transport::Udp | Transport::UdpUnchecked => {
                builder.udp(self.src.port(), self.dst.port()).write(&mut bytes, &self.payload)?;
            }
            Transport::Sctp(chunk) => {
                let (src, dst) = (self.src.port().to_be_bytes(), self.dst.port().to_be_bytes());
                // Ports, verification tag, checksum, and a chunk's type, flags and length.
                let mut sctp = vec![src[0], src[1], dst[0], dst[1], 0, 1, 2, 3, 0, 0, 0, 0, chunk, 0, 0, 0];
                sctp.extend(&self.payload);
                let checksum = CRC32C.checksum(&sctp);
                sctp[8..12].copy_from_slice(&checksum.to_le_bytes());
                builder.write(&mut bytes, PROTOCOL_SCTP.into(), &sctp)?;
            }
            Transport::Echo(is_reply) => {
                let (id, seq) = (7, 1);
                match (self.src.is_ipv4(), is_reply) {
                    (true, false) => builder.icmpv4_echo_request(id, seq).write(&mut bytes, &self.payload)?,
                    (true, true) => builder.icmpv4_echo_reply(id, seq).write(&mut bytes, &self.payload)?,
                    (false, false) => {
                        builder.icmpv6_echo_request(id, seq).write(&mut bytes, &self.payload)?
                    }
                    (false, true) => builder.icmpv6_echo_reply(id, seq).write(&mut bytes, &self.payload)?,
                }
            }
        }
        if self.transport == Transport::UdpUnchecked {
            let at = self.transport_offset() + 6;
            bytes[at..at + 2].fill(0);
        }
        Ok(bytes)
    }

    fn network(&self) -> anyhow::Result<IpHeaders> {
        Ok(match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = Ipv4Header::new(0, self.hop_limit, 0.into(), src.octets(), dst.octets())?;
                ip.dscp = (self.traffic_class >> 2).try_into()?;
                ip.ecn = (self.traffic_class & 3).try_into()?;
                ip.identification = 0xbeef;
                // No-operation options.
                ip.options = Ipv4Options::try_from(&[1u8; 40][..self.options])?;
                IpHeaders::Ipv4(ip, Ipv4Extensions::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => IpHeaders::Ipv6(
                Ipv6Header {
                    traffic_class: self.traffic_class,
                    flow_label: Ipv6FlowLabel::try_from(0xa_bcde)?,
                    hop_limit: self.hop_limit,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                },
                Ipv6Extensions::default(),
            ),
            _ => anyhow::bail!("{} and {} are of two families", self.src, self.dst),
        })
    }
}

/// Both ends of a frame's packet: of its network header and of the four bytes behind it.
pub fn ends(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let is_v4 = bytes[12..14] == [8, 0];
    let transport = if is_v4 { 14 + usize::from(bytes[14] & 0xf) * 4 } else { 54 };
    let addr = |at: usize| -> IpAddr {
        if is_v4 {
            std::array::from_fn::<u8, 4, _>(|i| bytes[at + i]).into()
        } else {
            std::array::from_fn::<u8, 16, _>(|i| bytes[at + i]).into()
        }
    };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (src, dst) = if is_v4 { (26, 30) } else { (22, 38) };
    (SocketAddr::new(addr(src), port(transport)), SocketAddr::new(addr(dst), port(transport + 2)))
}

/// Where the checksums of a frame are: of the IPv4 header, and of the transport header.
fn checksum_offsets(bytes: &[u8]) -> Option<(Option<usize>, usize)> {
    let (header, transport, protocol) = match bytes.get(12..15)? {
        [8, 0, version] => (Some(24), 14 + (*version as usize & 0xf) * 4, *bytes.get(23)?),
        [0x86, 0xdd, _] => (None, 54, *bytes.get(20)?),
        _ => return None,
    };
    let field = transport
        + match protocol {
            PROTOCOL_TCP => 16,
            PROTOCOL_SCTP => 8,
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 => 2,
            _ => 6,
        };
    (field + 2 <= bytes.len()).then_some((header, field))
}

/// One's complement sum of 16-bit words, folded.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|word| u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]) as u32)
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Checks every checksum of a frame from scratch. A UDP checksum of zero over IPv4 is none, and valid.
pub fn checksums_are_valid(bytes: &[u8]) -> bool {
    let Some((header, field)) = checksum_offsets(bytes) else {
        return true;
    };
    let is_v4 = header.is_some();
    let (transport, protocol, addresses) = if is_v4 {
        (14 + (bytes[14] as usize & 0xf) * 4, bytes[23], &bytes[26..34])
    } else {
        (54, bytes[20], &bytes[22..54])
    };
    if is_v4 && sum(&bytes[14..transport]) != 0xffff {
        return false;
    }
    if protocol == PROTOCOL_SCTP {
        let mut sctp = bytes[transport..].to_vec();
        sctp[8..12].fill(0);
        return CRC32C.checksum(&sctp).to_le_bytes() == bytes[field..field + 4];
    }
    if protocol == PROTOCOL_ICMP {
        return sum(&bytes[transport..]) == 0xffff;
    }
    let is_udp = protocol == PROTOCOL_UDP;
    if is_udp && bytes[field..field + 2] == [0, 0] {
        return is_v4;
    }
    let pseudo = sum(addresses) + protocol as u32 + (bytes.len() - transport) as u32;
    let total = pseudo + sum(&bytes[transport..]);
    total.is_multiple_of(0xffff)
}

/// Whether two frames are the same, byte by byte. 0 and 0xffff are the same checksum, except that a UDP checksum of 0 is none.
pub fn same_frame(expected: &[u8], got: &[u8]) -> bool {
    let normal = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        if let Some((header, field)) = checksum_offsets(&bytes) {
            let is_tcp = bytes[if header.is_some() { 23 } else { 20 }] == PROTOCOL_TCP;
            for at in header.into_iter().chain(is_tcp.then_some(field)) {
                if bytes[at..at + 2] == [0xff, 0xff] {
                    bytes[at..at + 2].fill(0);
                }
            }
        }
        bytes
    };
    normal(expected) == normal(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_frames_are_valid_and_changed_ones_are_not() {
        for (src, dst) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            for transport in [Transport::Tcp(2), Transport::Udp, Transport::Sctp(1)] {
                let frame = Frame::new(src.parse().unwrap(), dst.parse().unwrap(), transport);
                let bytes = frame.build().unwrap();
                assert!(checksums_are_valid(&bytes) && same_frame(&bytes, &bytes), "{frame:?}");
                // SCTP's checksum covers everything behind the network header, and an IPv6 header has no checksum.
                let address = (transport != Transport::Sctp(1)).then_some(26);
                for at in address.into_iter().chain([frame.transport_offset(), bytes.len() - 1]) {
                    let mut changed = bytes.clone();
                    changed[at] ^= 1;
                    assert!(!checksums_are_valid(&changed), "{frame:?} at {at}");
                    assert!(!same_frame(&bytes, &changed));
                }
            }
        }
    }
}
