//! Lengths, numbers and flags of headers.

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP: usize = 20;
/// Bytes of a UDP header.
pub const UDP: usize = 8;

/// Bytes of an ICMP or ICMPv6 header.
pub const ICMP: usize = 8;
/// Bytes of an SCTP header.
pub const SCTP_HEADER: usize = 12;

/// Bytes of an SCTP header with the head of its first chunk.
pub const SCTP: usize = 16;

/// EtherType of IPv4, host byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6, host byte order.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of SCTP.
pub const PROTOCOL_SCTP: u8 = 132;
/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// Next header number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Next header numbers of IPv6's extension headers (RFC 8200 section 4, RFC 4302).
pub mod extensions {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Authentication.
    pub const AUTHENTICATION: u8 = 51;
    /// Destination options.
    pub const DESTINATION: u8 = 60;

    /// Is it one of these?
    #[inline(always)]
    pub fn is_extension(next: u8) -> bool {
        matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
    }
}

/// Chunk types that say where an association is (RFC 9260 section 3.2).
pub mod sctp_chunks {
    /// Opens an association, always alone in its packet.
    pub const INIT: u8 = 1;
    /// Answers it, always alone in its packet.
    pub const INIT_ACK: u8 = 2;
    /// Ends the association at once.
    pub const ABORT: u8 = 6;
    /// The association is over.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// TCP flag bits (RFC 9293).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Resets the connection.
    pub const RST: u8 = 4;
    /// Acknowledges; a SYN without it is the client's.
    pub const ACK: u8 = 16;
}
