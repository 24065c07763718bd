//! Offsets of header fields, in bytes from the start of the header that names the module.

/// Ethernet II (IEEE 802.3 section 3.1.1).
pub mod ethernet {
    /// MAC of the receiver.
    pub const DESTINATION: usize = 0;
    /// MAC of the sender.
    pub const SOURCE: usize = 6;
    /// EtherType.
    pub const TYPE: usize = 12;
}

/// IPv4 (RFC 791 section 3.1).
pub mod ipv4 {
    /// Version and, in the lower four bits, length of the header in words of 4 bytes.
    pub const VERSION_IHL: usize = 0;
    /// Length of the whole packet.
    pub const TOTAL_LENGTH: usize = 2;
    /// Identification of a fragmented packet; flags and fragment offset follow it in the same word of 4 bytes.
    pub const IDENTIFICATION: usize = 4;
    /// Flags and fragment offset.
    pub const FRAGMENT: usize = 6;
    /// Time to live.
    pub const TTL: usize = 8;
    /// IP protocol number.
    pub const PROTOCOL: usize = 9;
    /// Checksum of the header.
    pub const CHECKSUM: usize = 10;
    /// Source address; the destination follows it.
    pub const SOURCE: usize = 12;
    /// Destination address.
    pub const DESTINATION: usize = 16;
}

/// IPv6 (RFC 8200 section 3).
pub mod ipv6 {
    /// Version, in the upper four bits, with half of the traffic class.
    pub const VERSION: usize = 0;
    /// Length of the data behind this header.
    pub const PAYLOAD_LENGTH: usize = 4;
    /// Protocol number of the header that follows.
    pub const NEXT_HEADER: usize = 6;
    /// Hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Source address; the destination follows it.
    pub const SOURCE: usize = 8;
    /// Destination address.
    pub const DESTINATION: usize = 24;
}

/// The common part of TCP, UDP and SCTP: their headers begin with the ports.
pub mod ports {
    /// Port of the sender.
    pub const SOURCE: usize = 0;
    /// Port of the receiver.
    pub const DESTINATION: usize = 2;
    /// End of the ports.
    pub const END: usize = 4;
}

/// TCP (RFC 9293 section 3.1).
pub mod tcp {
    /// Sequence number; the acknowledgment number follows it.
    pub const SEQUENCE: usize = 4;
    /// Acknowledgment number.
    pub const ACKNOWLEDGMENT: usize = 8;
    /// Length of the header in words of 4 bytes, in the upper four bits; flags and window follow it in the same word.
    pub const DATA_OFFSET: usize = 12;
    /// Flags: see [`tcp_flags`](super::super::tcp_flags).
    pub const FLAGS: usize = 13;
    /// Checksum; the urgent pointer follows it in the same word of 4 bytes.
    pub const CHECKSUM: usize = 16;
}

/// UDP (RFC 768).
pub mod udp {
    /// Checksum.
    pub const CHECKSUM: usize = 6;
}

/// SCTP: the common header and the head of the first chunk (RFC 9260 sections 3.1 and 3.2).
pub mod sctp {
    /// CRC32c of the whole packet.
    pub const CHECKSUM: usize = 8;
    /// Type of the first chunk.
    pub const CHUNK_TYPE: usize = 12;
    /// Length of the first chunk, its head included.
    pub const CHUNK_LENGTH: usize = 14;
}

/// ICMP (RFC 792) and ICMPv6 (RFC 4443 section 2.1).
pub mod icmp {
    /// Type; the code follows it in the same word of 2 bytes.
    pub const TYPE: usize = 0;
    /// Code.
    pub const CODE: usize = 1;
    /// Checksum.
    pub const CHECKSUM: usize = 2;
    /// Depends on the type; in a message that a packet is too big: the MTU.
    pub const REST: usize = 4;
}

/// Offset of the checksum in the header of TCP, UDP or SCTP.
#[inline(always)]
pub const fn checksum(protocol: u8) -> usize {
    match protocol {
        super::PROTOCOL_TCP => tcp::CHECKSUM,
        super::PROTOCOL_SCTP => sctp::CHECKSUM,
        _ => udp::CHECKSUM,
    }
}
