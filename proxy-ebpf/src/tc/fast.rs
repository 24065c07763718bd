//! The fast path at tc, for nearly all packets: it needs no separate steps.

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use proxy_common::{
    decide::{
        Verdict,
        fast_path::{self, FastPath},
    },
    layout::{counter::Counter, flow::FlowKey},
    packet::Packet,
};

use super::{Hook, NEXT, apply::send, bounds, checksums::TcFamily, in_place::translate, is_surely_for_us};
use crate::{
    context::Skb,
    family::KernelFamily,
    tables::{FlowEntry, Kernel, count},
};

/// Runs a hook; `None` if the packet needs the packet path.
#[inline(always)]
pub(super) fn take_fast_path<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(
    ctx: &TcContext,
) -> Option<i32> {
    // The kernel log records translations on the packet path.
    if cfg!(feature = "kernel-log") || !is_surely_for_us::<H>(ctx.skb.skb) {
        return None;
    }
    let packet = bounds(ctx).parse_without_options::<F>(LINK)?;
    // On the stack: the scratch memory takes a look-up, and most packets need nothing else of it.
    let key = &mut FlowKey::<F>::default();
    match H::fast_path::<F>(&Kernel::of_skb(ctx.skb.skb, LINK), &packet, key) {
        FastPath::Pass => Some(NEXT),
        FastPath::Follow(flow) => follow::<F, H, LINK>(ctx, &packet, key, &flow),
        FastPath::Undecided => None,
    }
}

#[inline(always)]
fn follow<F: KernelFamily + TcFamily, H: Hook, const LINK: usize>(
    ctx: &TcContext,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &FlowEntry<F>,
) -> Option<i32> {
    // A packet that leaves to a client is a reply of a local endpoint: the stack sends it. The constant saves
    // stack.
    let verdict = if H::IS_LEAVING { Verdict::ToStack } else { fast_path::verdict(flow) };
    let (mut route, mut hops) = (None, 0);
    if matches!(verdict, Verdict::Redirect) {
        let ifindex = Skb(ctx.skb.skb).ifindex();
        let known = fast_path::route(&Kernel::of_skb(ctx.skb.skb, LINK), packet, flow, ifindex)?;
        hops = known.hops();
        route = Some(known);
    }
    count(fast_path::counter(flow));
    let tuples = (&key.tuple, &flow.tuple);
    let sent = translate::<F, LINK>(ctx, key.protocol, tuples, hops, H::MAY_BE_CHECKSUM_COMPLETE)
        .then(|| send::<F, LINK>(ctx, verdict, route, flow.mac))
        .flatten();
    if sent.is_none() {
        // A packet that may be half rewritten is dropped.
        count(Counter::RewriteFailed);
        return Some(TC_ACT_SHOT);
    }
    sent
}
