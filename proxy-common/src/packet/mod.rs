//! Headers in, [`Packet`] out. Raw pointers with one bounds check per header: slices would not verify.
//!
//! This is for nearly all packets. [`mod@dissect`] parses the others: fragments, extension headers, ICMP
//! errors.

mod dissect;
pub mod field;
mod headers;
mod ipv4;
mod ipv6;
#[cfg(test)]
mod tests;
mod transport;

use self::transport::flags_of_chunk;
pub use self::{
    dissect::{Bytes, Dissected, Part, dissect},
    headers::*,
    transport::timestamp,
};

use crate::{Family, layout::flow::Tuple};

/// The fields of a packet that the decision core reads.
///
/// ```
/// use proxy_common::{
///     V4,
///     packet::{PROTOCOL_TCP, Parse, tcp_flags},
/// };
///
/// let mut bytes = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0, 10, 244, 1, 7, 10, 96, 0, 1];
/// bytes.extend([0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, tcp_flags::SYN, 0xff, 0xff, 0, 0, 0, 0]);
/// let range = bytes.as_ptr_range();
/// // SAFETY: the range of a vector.
/// let packet = unsafe { V4::parse(range.start, range.end, 0) }.map_err(|_| "not parsed")?;
/// assert!(packet.is_syn() && packet.is_request());
/// assert_eq!((u16::from_be(packet.tuple.dport), packet.checksum_offset()), (443, 36));
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<F: Family> {
    /// Addresses and ports.
    pub tuple: Tuple<F>,
    /// IP protocol number: TCP, UDP or SCTP; or ICMP (of either family) for an echo request, without ports.
    pub protocol: u8,
    /// TCP flags; 0 for UDP and echo requests; for SCTP the flags that correspond to its first chunk.
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TCP: sequence number, host byte order; else 0.
    pub sequence: u32,
    /// TCP: acknowledgment number, host byte order; else 0.
    pub acknowledgment: u32,
    /// Offset of the transport header from the start of the frame.
    pub transport: usize,
    /// The packet belongs to an existing flow and never opens one: a fragment other than the first, or an ICMP
    /// error about a packet of the flow's other direction. The tuple of an error is that of a reply to that
    /// packet.
    pub follows: bool,
}

impl<F: Family> Packet<F> {
    /// Whether it is the first packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
    }

    /// Whether it is the reply to the first packet of a TCP connection.
    #[inline(always)]
    pub fn is_syn_ack(&self) -> bool {
        self.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN | tcp_flags::ACK
    }

    /// Whether it opens a connection: TCP with SYN and without ACK, RST and FIN, an SCTP INIT, or any datagram
    /// that is not part of another one. No other packet is a request to a frontend.
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        const OPENING: u8 = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN;
        !self.follows && (self.protocol == PROTOCOL_UDP || self.tcp_flags & OPENING == tcp_flags::SYN)
    }

    /// Whether it is a ping.
    #[inline(always)]
    pub fn is_echo_request(&self) -> bool {
        self.protocol == PROTOCOL_ICMP || self.protocol == PROTOCOL_ICMPV6
    }

    /// Whether it ends a TCP connection.
    #[inline(always)]
    pub fn is_closing(&self) -> bool {
        self.tcp_flags & (tcp_flags::FIN | tcp_flags::RST) != 0
    }

    /// Whether it ends a TCP connection at once.
    #[inline(always)]
    pub fn is_reset(&self) -> bool {
        self.tcp_flags & tcp_flags::RST != 0
    }

    /// Offset of the transport checksum from the start of the frame.
    #[inline(always)]
    pub fn checksum_offset(&self) -> usize {
        self.transport + field::checksum(self.protocol)
    }
}

impl<F: Parse> Packet<F> {
    /// Whether it is TCP or UDP, behind a network header without options that starts at this offset.
    #[inline(always)]
    pub fn has_no_options(&self, network: usize) -> bool {
        self.transport == network + F::HEADER && matches!(self.protocol, PROTOCOL_TCP | PROTOCOL_UDP)
    }
}

/// The reason why a packet was not parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// No Service has such packets: another protocol, or a header that contradicts itself.
    NotOurs,
    /// The headers are longer than the readable bytes.
    Short,
    /// For [`mod@dissect`]: a fragment, a packet with extension headers, or an ICMP error.
    SlowPath,
}

/// A family's headers.
pub trait Parse: Family {
    /// Shortest network header in bytes.
    const HEADER: usize;
    /// Offset of the addresses, the source first.
    const ADDRESSES: usize;
    /// The header, as read at once.
    type Words: Copy;
    /// The family's ICMP.
    const ICMP: u8;

    /// Whether it is the type of an ICMP error, which quotes a packet.
    fn is_error(r#type: u8) -> bool;
    /// The length of the whole packet, from its network header.
    ///
    /// # Safety
    /// `header` points to [`Self::HEADER`] readable bytes.
    unsafe fn total_length(header: *const u8) -> u32;
    /// Parses the headers from the network header up to the transport header; reads those that follow with
    /// `bytes`.
    fn network<B: Bytes + ?Sized>(
        words: &Self::Words,
        at: usize,
        bytes: &B,
    ) -> Option<dissect::Network<Self>>;

    /// Parses the packet between `data` and `end`, whose network header starts at offset `network`.
    ///
    /// # Errors
    /// See [`Unparsed`].
    ///
    /// # Safety
    /// All bytes from `data` up to `end` are readable.
    #[inline(always)]
    unsafe fn parse(data: *const u8, end: *const u8, network: usize) -> Result<Packet<Self>, Unparsed> {
        // SAFETY: the caller's promise.
        unsafe { Self::parse_as::<false>(data, end, network) }
    }

    /// The same for TCP and UDP behind a network header of [`Self::HEADER`] bytes alone: all offsets are constants.
    ///
    /// # Safety
    /// All bytes from `data` up to `end` are readable.
    #[inline(always)]
    unsafe fn parse_without_options(data: *const u8, end: *const u8, network: usize) -> Option<Packet<Self>> {
        // SAFETY: the caller's promise.
        unsafe { Self::parse_as::<true>(data, end, network).ok() }
    }

    /// Either of the above.
    ///
    /// # Errors
    /// See [`Unparsed`].
    ///
    /// # Safety
    /// All bytes from `data` up to `end` are readable.
    unsafe fn parse_as<const WITHOUT_OPTIONS: bool>(
        data: *const u8,
        end: *const u8,
        network: usize,
    ) -> Result<Packet<Self>, Unparsed>;
}

/// Reads a word from an address that need not be aligned: a single load in the kernel programs.
///
/// # Safety
/// The bytes are readable.
#[inline(always)]
pub unsafe fn read<T: Copy>(at: *const u8) -> T {
    // In the kernel programs `read_unaligned` would become a load per byte; the verifier checks the alignment.
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        at.cast::<T>().read()
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        at.cast::<T>().read_unaligned()
    }
}
