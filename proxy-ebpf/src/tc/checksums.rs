//! The effect of new addresses and ports on a packet's checksums, including those that a device computes.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace, bpf_skb_store_bytes},
};
use proxy_common::{
    V4, V6, checksum, crc32c,
    layout::flow::Tuple,
    packet::{
        Bytes as _, IPV6, PROTOCOL_SCTP, PROTOCOL_UDP, Packet,
        field::{ipv4, ipv6, sctp},
    },
};

use crate::{context::Skb, reject::ReplyHeaders, rewrite::Header, settings::HAS_CSUM_IPV6};

/// Reads a length in a header.
#[inline(always)]
fn length_field(skb: *mut __sk_buff, offset: usize) -> Option<u32> {
    Skb(skb).load::<u16>(offset).map(|length| u16::from_be(length) as u32)
}

/// Checksum updates of a family.
pub(crate) trait TcFamily: Header + ReplyHeaders {
    /// Offset of the packet's end, from its network header: frames may be padded.
    fn end(skb: *mut __sk_buff, network: usize) -> Option<u32>;
    /// Flags for a change of addresses in `bpf_l4_csum_replace`.
    fn csum_flags() -> u64;
    /// Writes addresses where `csum_flags` alone would leave CHECKSUM_COMPLETE wrong.
    fn store_addresses(skb: *mut __sk_buff, network: usize, to: &Tuple<Self>) -> bool;
    /// Updates the skb's checksum after addresses and the transport checksum were written in place. The latter
    /// compensates the addresses, which changed its sum by `addresses`, folded.
    fn tell(skb: *mut __sk_buff, addresses: u32);
}

impl TcFamily for V4 {
    #[inline(always)]
    fn end(skb: *mut __sk_buff, network: usize) -> Option<u32> {
        Some(network as u32 + length_field(skb, network + ipv4::TOTAL_LENGTH)?)
    }

    #[inline(always)]
    fn csum_flags() -> u64 {
        BPF_F_PSEUDO_HDR as u64
    }

    #[inline(always)]
    fn store_addresses(_: *mut __sk_buff, _: usize, _: &Tuple<Self>) -> bool {
        // The header's checksum compensates its addresses: the sum of the packet stays.
        true
    }

    /// The header's checksum compensates its addresses, and so does the transport's: CHECKSUM_COMPLETE must
    /// drop one of the two.
    #[inline(always)]
    fn tell(skb: *mut __sk_buff, addresses: u32) {
        let less = !addresses as u16;
        // SAFETY: the context, and a number.
        unsafe { bpf_csum_update(skb, less as u32) };
    }
}

impl TcFamily for V6 {
    #[inline(always)]
    fn end(skb: *mut __sk_buff, network: usize) -> Option<u32> {
        Some((network + IPV6) as u32 + length_field(skb, network + ipv6::PAYLOAD_LENGTH)?)
    }

    #[inline(always)]
    fn csum_flags() -> u64 {
        /// Kernel 6.16 and later (commit ead7f9b8de65).
        const BPF_F_IPV6: u64 = 1 << 7;
        BPF_F_PSEUDO_HDR as u64 | if HAS_CSUM_IPV6.load() != 0 { BPF_F_IPV6 } else { 0 }
    }

    #[inline(always)]
    fn tell(_: *mut __sk_buff, _: u32) {
        // The transport checksum compensates all changes: the sum of the packet stays.
    }

    /// With CHECKSUM_COMPLETE, older kernels count new IPv6 addresses although the transport checksum
    /// compensates them. Storing the addresses so that the kernel counts them twice corrects that.
    #[inline(always)]
    fn store_addresses(skb: *mut __sk_buff, network: usize, to: &Tuple<Self>) -> bool {
        const RECOMPUTE_CSUM: u64 = 1;
        if HAS_CSUM_IPV6.load() != 0 {
            return true;
        }
        // SAFETY: source and destination lie side by side in the tuple, as in the header.
        unsafe {
            bpf_skb_store_bytes(
                skb,
                (network + ipv6::SOURCE) as u32,
                (&raw const *to).cast(),
                (IPV6 - ipv6::SOURCE) as u32,
                RECOMPUTE_CSUM,
            ) == 0
        }
    }
}

/// Updates SCTP's checksum, which does not cover addresses.
///
/// A global function, which the verifier checks once and not for each call: it takes thousands of instructions.
#[unsafe(no_mangle)]
pub extern "C" fn update_crc(skb: *mut __sk_buff, transport: u32, difference: u32, length: u32) -> i32 {
    let at = transport as usize + sctp::CHECKSUM;
    let Some(sum) = Skb(skb).load::<u32>(at) else { return -1 };
    let sum = crc32c::update(sum, difference, length as u16);
    // SAFETY: the context, and a word on the stack.
    unsafe { bpf_skb_store_bytes(skb, at as u32, (&raw const sum).cast(), 4, 0) as i32 }
}

/// Updates the transport checksum. Two calls: with CHECKSUM_PARTIAL the field has only the addresses, and ports
/// must not be added to it.
#[inline(always)]
pub(super) fn update_checksum<F: TcFamily>(
    skb: *mut __sk_buff,
    network: usize,
    packet: &Packet<F>,
    to: &Tuple<F>,
) -> bool {
    let from = &packet.tuple;
    if packet.protocol == PROTOCOL_SCTP {
        let ports = |tuple: &Tuple<F>| tuple.sport as u32 | (tuple.dport as u32) << 16;
        let difference = ports(from) ^ ports(to);
        if difference == 0 {
            return true;
        }
        let Some(end) = F::end(skb, network) else { return false };
        let transport = packet.transport as u32;
        return update_crc(skb, transport, difference, end.wrapping_sub(transport)) == 0;
    }
    let zero = if packet.protocol == PROTOCOL_UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
    let offset = packet.checksum_offset() as u32;
    let addresses = checksum::addresses(from, to) as u64;
    // SAFETY: the context, and an offset that the helper checks.
    if unsafe { bpf_l4_csum_replace(skb, offset, 0, addresses, F::csum_flags() | zero) } != 0 {
        return false;
    }
    if from.sport == to.sport && from.dport == to.dport {
        return true;
    }
    // SAFETY: as above.
    unsafe { bpf_l4_csum_replace(skb, offset, 0, checksum::ports(from, to) as u64, zero) == 0 }
}
