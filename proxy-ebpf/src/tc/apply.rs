//! Writes a translation into a packet, and sends the packet.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, bpf_redir_neigh},
    helpers::generated::{bpf_redirect_neigh, bpf_skb_change_head},
    programs::TcContext,
};
use proxy_common::{
    decide::{Route, RouteKind, Verdict},
    layout::{
        counter::Counter,
        device::LOOPBACK,
        flow::{Mac, Tuple},
    },
    packet::{ETHERNET, Packet, Part, field::ethernet},
};

use super::{
    NEXT, Outcome, bounds,
    checksums::{TcFamily, update_checksum},
    in_place::translate,
    slow_path,
};
use crate::{
    context::{Skb, redirect},
    family::KernelFamily,
    log::LogEvent,
    rewrite::{self, LONGEST_MASK},
    scratch::{Scratch, scratch},
    tables::count,
};

/// Applies the verdict.
#[inline(always)]
pub(crate) fn apply<F: KernelFamily + TcFamily, const LINK: usize>(ctx: &TcContext) -> u64 {
    let Some(Scratch { dissected, verdict, out, .. }) = scratch::<F>() else { return failed().0 };
    let packet = &dissected.packet;
    let hops = if matches!(verdict, Verdict::Redirect) { out.route.hops() } else { 0 };
    let written = match dissected.part {
        Part::Plain if packet.has_no_options(LINK) => {
            translate::<F, LINK>(ctx, packet.protocol, (&packet.tuple, &out.to), hops, true)
        }
        Part::Plain => write::<F, LINK>(ctx, packet, &out.to, hops),
        _ => slow_path::write::<F>(ctx.skb.skb, LINK, dissected, &out.to, hops),
    };
    if !written {
        return failed().0;
    }
    let log_event = LogEvent::translated::<F>(&packet.tuple, &out.to);
    match send::<F, LINK>(ctx, *verdict, Some(&out.route), out.mac) {
        Some(result) => Outcome::with(result, log_event).0,
        None => failed().0,
    }
}

/// Writes the translation into the packet, at the offsets that the fast-path parse found.
#[inline(always)]
pub(super) fn write<F: KernelFamily + TcFamily, const LINK: usize>(
    ctx: &TcContext,
    packet: &Packet<F>,
    to: &Tuple<F>,
    hops: u8,
) -> bool {
    let skb = ctx.skb.skb;
    if !update_checksum(skb, LINK, packet, to) || !F::store_addresses(skb, LINK, to) {
        return false;
    }
    // Without the mask the verifier assumes any offset; without the `black_box` the compiler, which knows the
    // bound, would drop the mask.
    let transport = core::hint::black_box(packet.transport) & LONGEST_MASK;
    // The helpers may have moved the packet.
    rewrite::headers(bounds(ctx), LINK, transport, &packet.tuple, to, hops)
}

/// Sends a translated packet, with [`Verdict::Redirect`] and [`Verdict::Divert`] by the route; `None` on
/// failure.
#[inline(always)]
pub(super) fn send<F: KernelFamily, const LINK: usize>(
    ctx: &TcContext,
    verdict: Verdict,
    route: Option<&Route<F>>,
    mac: Mac,
) -> Option<i32> {
    match verdict {
        Verdict::Bridge => {
            let is_written = LINK == 0 || rewrite::macs(bounds(ctx), Some(mac), None);
            is_written.then_some(NEXT)
        }
        Verdict::Hairpin => {
            let is_written = LINK == 0 || rewrite::swap_macs(bounds(ctx));
            is_written.then(|| redirect(Skb(ctx.skb.skb).ifindex(), 0) as i32)
        }
        Verdict::Redirect | Verdict::Divert => {
            let route = route?;
            if LINK == 0 && !add_ethernet(ctx) {
                return None;
            }
            if matches!(route.kind, RouteKind::Stack) {
                return hand_to_stack(ctx);
            }
            if !route.names_next_hop {
                // SAFETY: plain arguments; the kernel looks the route up and attaches it to the packet.
                return Some(unsafe { bpf_redirect_neigh(route.ifindex, ptr::null_mut(), 0, 0) as i32 });
            }
            let mut neighbour = F::neighbour(&route.next_hop);
            let size = size_of::<bpf_redir_neigh>() as i32;
            // SAFETY: parameters of the size that is given.
            Some(unsafe { bpf_redirect_neigh(route.ifindex, &mut neighbour, size, 0) as i32 })
        }
        _ => Some(NEXT),
    }
}

/// Has the stack route and send a translated packet with an Ethernet header, as one that the loopback interface
/// received. Only there does the kernel accept packets from its own addresses (`accept_local`), with any
/// `rp_filter` (`__fib_validate_source`).
#[inline(always)]
fn hand_to_stack(ctx: &TcContext) -> Option<i32> {
    // The loopback interface's own address: the kernel drops frames for others (`eth_type_trans`).
    let is_written = rewrite::macs(bounds(ctx), Some(Mac::NONE), None);
    is_written.then(|| redirect(LOOPBACK, BPF_F_INGRESS) as i32)
}

/// Drops a packet that may be half rewritten.
#[inline(always)]
pub(super) fn failed() -> Outcome {
    count(Counter::RewriteFailed);
    Outcome::with(TC_ACT_SHOT, LogEvent::Nothing)
}

/// Adds an Ethernet header: `bpf_redirect_neigh` drops frames without one, even though it replaces its content.
#[inline(always)]
fn add_ethernet(ctx: &TcContext) -> bool {
    const ANY_UNICAST: Mac = Mac([u16::from_ne_bytes([2, 0]), 0, u16::from_ne_bytes([0, 1])]);
    // SAFETY: the context.
    if unsafe { bpf_skb_change_head(ctx.skb.skb, ETHERNET as u32, 0) } != 0 {
        return false;
    }
    let bounds = bounds(ctx);
    rewrite::macs(bounds, Some(ANY_UNICAST), Some(ANY_UNICAST))
        && bounds.store(ethernet::TYPE, Skb(ctx.skb.skb).protocol() as u16)
}
