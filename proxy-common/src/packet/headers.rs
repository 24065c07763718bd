//! Lengths of headers, and numbers and flags in them; [`super::field`] has the offsets.

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// Bytes of the longest IPv4 header, with options.
pub const LONGEST_IPV4: usize = 60;
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

/// Unit in which IPv4 and TCP count the length of their headers, in bytes.
pub const WORD: usize = 4;

/// Index of the header word that has the field at this offset.
#[inline(always)]
pub const fn word(offset: usize) -> usize {
    offset / WORD
}

/// Version of IPv4, in the upper half of its header's first byte.
pub const VERSION_IPV4: u8 = 4;
/// Version of IPv6, in the same place.
pub const VERSION_IPV6: u8 = 6;
/// First byte of an IPv4 header without options: version, and length in words.
pub const IPV4_NO_OPTIONS: u8 = VERSION_IPV4 << 4 | (IPV4 / WORD) as u8;

/// The VLAN's number in a VLAN tag (IEEE 802.1Q section 9.6); the rest is priority.
pub const VLAN_ID: u16 = 0x0fff;

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
/// IP protocol number of GRE.
pub const PROTOCOL_GRE: u8 = 47;

/// The flags and offset beside the identification of IPv4, in its lower half (RFC 791 section 3.1), host byte
/// order.
pub mod ipv4_fragment {
    /// Routers must not fragment the packet.
    pub const DO_NOT_FRAGMENT: u16 = 0x4000;
    /// More fragments follow.
    pub const MORE: u16 = 0x2000;
    /// Position of the fragment, in units of 8 bytes.
    pub const OFFSET: u16 = 0x1fff;
    /// Any of these bits: it is a fragment.
    pub const IS_FRAGMENT: u16 = MORE | OFFSET;
}

/// The same of IPv6's fragment header (RFC 8200 section 4.5).
pub mod ipv6_fragment {
    /// More fragments follow.
    pub const MORE: u16 = 0x0001;
    /// Position of the fragment, in units of 8 bytes.
    pub const OFFSET: u16 = 0xfff8;
}

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

    /// Whether it is one of these.
    #[inline(always)]
    pub fn is_extension(next: u8) -> bool {
        matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
    }

    /// Bytes of the fragment header.
    pub const FRAGMENT_SIZE: usize = 8;

    /// Bytes of an authentication header: its length field counts words of 4 bytes, without the first two (RFC 4302 section 2.2).
    #[inline(always)]
    pub const fn size_of_authentication(length: usize) -> usize {
        (length + 2) * 4
    }

    /// Bytes of another header: its length field counts words of 8 bytes, without the first (RFC 8200 section 4).
    #[inline(always)]
    pub const fn size(length: usize) -> usize {
        (length + 1) * 8
    }
}

/// Types and codes of ICMP messages (RFC 792).
pub mod icmp_types {
    /// Reply to a ping.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench.
    pub const SOURCE_QUENCH: u8 = 4;
    /// Ping.
    pub const ECHO_REQUEST: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// Code of [`UNREACHABLE`]: no process has the port.
    pub const PORT_UNREACHABLE: u8 = 3;
    /// Code of [`UNREACHABLE`]: fragmentation needed, and forbidden.
    pub const FRAGMENTATION_NEEDED: u8 = 4;
}

/// Types and codes of ICMPv6 messages (RFC 4443).
pub mod icmpv6_types {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Ping.
    pub const ECHO_REQUEST: u8 = 128;
    /// Reply to a ping.
    pub const ECHO_REPLY: u8 = 129;

    /// Code of [`UNREACHABLE`]: no process has the port.
    pub const PORT_UNREACHABLE: u8 = 4;
}

/// Chunk types that change the state of an association (RFC 9260 section 3.2).
pub mod sctp_chunks {
    /// Opens an association, always alone in its packet.
    pub const INIT: u8 = 1;
    /// Answers it, always alone in its packet.
    pub const INIT_ACK: u8 = 2;
    /// Ends the association at once.
    pub const ABORT: u8 = 6;
    /// Ends the association after its shutdown.
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
