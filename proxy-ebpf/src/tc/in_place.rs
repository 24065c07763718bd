//! Writing a translation into a packet without options or extension headers, where all offsets are constants.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0},
    helpers::generated::bpf_l4_csum_replace,
    programs::TcContext,
};
use proxy_common::{
    checksum,
    layout::flow::Tuple,
    packet::{
        PROTOCOL_TCP,
        field::{tcp, udp},
    },
};

use super::{bounds, checksums::TcFamily};
use crate::{context::Skb, rewrite};

/// Writes addresses, ports and checksums, and takes `hops` off the hop limit; false on failure, perhaps
/// half-way. `may_be_checksum_complete`: the skb may have CHECKSUM_COMPLETE.
#[inline(always)]
pub(super) fn translate<F: TcFamily, const LINK: usize>(
    ctx: &TcContext,
    protocol: u8,
    (from, to): (&Tuple<F>, &Tuple<F>),
    hops: u8,
    may_be_checksum_complete: bool,
) -> bool {
    let skb = ctx.skb.skb;
    let is_tcp = protocol == PROTOCOL_TCP;
    let transport = LINK + F::HEADER;
    let field = transport + if is_tcp { tcp::CHECKSUM } else { udp::CHECKSUM };
    let Some(before) = checksum_at(ctx, field) else { return false };
    // One after the other, and once: registers and stack are scarce.
    let was = checksum::sum_of_addresses(from);
    compiler_fence(Ordering::SeqCst);
    let is = checksum::sum_of_addresses(to);
    compiler_fence(Ordering::SeqCst);
    let addresses = checksum::fold(checksum::difference(was, is));
    if may_be_left::<F, LINK>(ctx, was, protocol, before) {
        let zero = if is_tcp { 0 } else { BPF_F_MARK_MANGLED_0 as u64 };
        if !replace(ctx, field, addresses, (from, to), zero) || !F::store_addresses(skb, LINK, to) {
            return false;
        }
        compiler_fence(Ordering::SeqCst);
        return rewrite::headers(bounds(ctx), LINK, transport, from, to, hops);
    }
    let bounds = bounds(ctx);
    // Zero means no UDP checksum: leave it.
    if before != 0 || is_tcp {
        let change = addresses + checksum::ports(from, to);
        let after =
            if is_tcp { checksum::update(before, change) } else { checksum::update_udp(before, change) };
        if !bounds.store(field, after) {
            return false;
        }
        if may_be_checksum_complete {
            F::tell(skb, addresses);
        }
    }
    // The program reads the tuples again: keeping them would take stack.
    compiler_fence(Ordering::SeqCst);
    rewrite::headers(bounds, LINK, transport, from, to, hops)
}

#[inline(always)]
fn checksum_at(ctx: &TcContext, field: usize) -> Option<u16> {
    bounds(ctx).load(field)
}

/// Whether the packet may be CHECKSUM_PARTIAL. Then its field has the sum of the pseudo header: with any other
/// value there the device would compute a wrong checksum. GSO packets may have another length there.
#[inline(always)]
fn may_be_left<F: TcFamily, const LINK: usize>(
    ctx: &TcContext,
    addresses: u32,
    protocol: u8,
    field: u16,
) -> bool {
    let Some(header) = bounds(ctx).at(LINK, F::HEADER) else { return true };
    let segment = Skb(ctx.skb.skb).gso_size();
    // SAFETY: the header was just checked.
    let length = unsafe { F::total_length(header) };
    let length = length.wrapping_sub(F::HEADER as u32) as u16;
    segment != 0 || checksum::same(field, checksum::pseudo_header(addresses, protocol, length))
}

/// Calls the kernel to update a checksum of a packet that may be CHECKSUM_PARTIAL.
#[inline(always)]
fn replace<F: TcFamily>(
    ctx: &TcContext,
    field: usize,
    addresses: u32,
    (from, to): (&Tuple<F>, &Tuple<F>),
    zero: u64,
) -> bool {
    let skb: *mut __sk_buff = ctx.skb.skb;
    let Some(before) = checksum_at(ctx, field) else { return false };
    // SAFETY: the context, and an offset that the helper checks.
    if unsafe { bpf_l4_csum_replace(skb, field as u32, 0, addresses as u64, F::csum_flags() | zero) } != 0 {
        return false;
    }
    if from.sport == to.sport && from.dport == to.dport {
        return true;
    }
    let Some(after) = checksum_at(ctx, field) else { return false };
    // With CHECKSUM_PARTIAL the field grew with the addresses and excludes ports; a checksum shrank.
    let grew = checksum::fold(before as u32 + addresses) as u16;
    if checksum::same(after, grew) && !checksum::same(addresses as u16, 0) {
        return true;
    }
    // SAFETY: as above.
    unsafe { bpf_l4_csum_replace(skb, field as u32, 0, checksum::ports(from, to) as u64, zero) == 0 }
}
