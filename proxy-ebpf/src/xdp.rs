//! The XDP program: the same core, for packets that do not need the stack. It passes the others *untouched* to
//! tc.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    programs::XdpContext,
};
use proxy_common::{
    Family, V4, V6, checksum,
    decide::{
        self, NodeTables, Route, RouteKind, Translation, Verdict,
        fast_path::{self, FastPath},
    },
    layout::{
        counter::Counter,
        device::DEVICE_XDP_REDIRECT,
        flow::{FlowKey, Tuple},
    },
    packet::{
        ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_SCTP, PROTOCOL_TCP, Packet,
        field::{ethernet, tcp, udp},
        read,
    },
};

use crate::{
    context::{Bounds, Frame, redirect},
    family::KernelFamily,
    rewrite::{self, Header, LONGEST_MASK},
    scratch::{Scratch, scratch},
    tables::{Kernel, count},
};

/// Runs on an uplink.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    match bounds(ctx).load(ethernet::TYPE).map(u16::from_be) {
        Some(ETHERTYPE_IPV4) if V4::is_served() => family::<V4>(ctx),
        Some(ETHERTYPE_IPV6) if V6::is_served() => family::<V6>(ctx),
        _ => XDP_PASS,
    }
}

#[inline(always)]
fn bounds(ctx: &XdpContext) -> Bounds {
    Frame(ctx.ctx).bounds()
}

#[inline(always)]
fn family<F: KernelFamily + Header>(ctx: &XdpContext) -> u32 {
    if let Some(action) = take_fast_path::<F>(ctx) {
        return action;
    }
    // tc counts packets that do not parse.
    let Ok(parsed) = bounds(ctx).parse::<F>(ETHERNET) else { return XDP_PASS };
    let Some(Scratch { dissected, out, .. }) = scratch::<F>() else { return XDP_PASS };
    dissected.packet = parsed;
    out.begin();
    let packet = &dissected.packet;
    if packet.protocol == PROTOCOL_SCTP {
        // SCTP's checksum covers the whole packet, of any length; tc can update it.
        return XDP_PASS;
    }
    let ifindex = Frame(ctx.ctx).ingress_ifindex();
    let kernel = Kernel::before_tc(ctx.as_ptr());
    match decide::uplink_ingress(&kernel, packet, ifindex, out) {
        Verdict::ToStack => translate(ctx, packet, out),
        Verdict::Redirect => forward(ctx, &kernel, packet, out, ifindex),
        Verdict::Drop => XDP_DROP,
        // tc sends and counts rejects; the other verdicts are for other interfaces only.
        Verdict::Pass
        | Verdict::Reject
        | Verdict::Reset
        | Verdict::Echo
        | Verdict::TimeExceeded
        | Verdict::TooBig
        | Verdict::Bridge
        | Verdict::Hairpin
        | Verdict::NewFlow
        | Verdict::Divert
        | Verdict::Open => XDP_PASS,
    }
}

/// The fast path for nearly all packets, as at tc; `None` if the packet needs the packet path.
#[inline(always)]
fn take_fast_path<F: KernelFamily + Header>(ctx: &XdpContext) -> Option<u32> {
    let Scratch { key, .. } = scratch::<F>()?;
    let packet = bounds(ctx).parse_without_options::<F>(ETHERNET)?;
    let kernel = Kernel::before_tc(ctx.as_ptr());
    let flow = match fast_path::uplink_ingress(&kernel, &packet, key) {
        FastPath::Pass => return Some(XDP_PASS),
        FastPath::Follow(flow) => flow,
        FastPath::Undecided => return None,
    };
    match fast_path::verdict(&flow) {
        Verdict::ToStack => {
            count(fast_path::counter(&flow));
            let done = in_place::<F>(ctx, key, &flow.tuple, 0);
            Some(if done { XDP_PASS } else { failed() })
        }
        Verdict::Redirect => {
            let ifindex = Frame(ctx.ctx).ingress_ifindex();
            let route = fast_path::route(&kernel, &packet, &flow, ifindex)?;
            count(fast_path::counter(&flow));
            if !can_send::<F>(&kernel, route, ifindex) {
                count(Counter::XdpToTc);
                return Some(XDP_PASS);
            }
            let done = in_place::<F>(ctx, key, &flow.tuple, 1);
            Some(if done { send::<F>(ctx, route, ifindex) } else { failed() })
        }
        _ => None,
    }
}

/// For a backend on this node: the stack delivers it.
#[inline(always)]
fn translate<F: Header>(ctx: &XdpContext, packet: &Packet<F>, translation: &Translation<F>) -> u32 {
    if write(bounds(ctx), packet, &translation.to, 0) { XDP_PASS } else { failed() }
}

/// For a remote backend, or back to a client of one.
#[inline(always)]
fn forward<F: KernelFamily + Header>(
    ctx: &XdpContext,
    kernel: &Kernel,
    packet: &Packet<F>,
    translation: &Translation<F>,
    ifindex: u32,
) -> u32 {
    if !can_send::<F>(kernel, &translation.route, ifindex) {
        count(Counter::XdpToTc);
        return XDP_PASS;
    }
    if write(bounds(ctx), packet, &translation.to, 1) {
        send::<F>(ctx, &translation.route, ifindex)
    } else {
        failed()
    }
}

/// Whether XDP can send a frame by this route. The neighbour must be known, and another device must take frames
/// from XDP.
#[inline(always)]
fn can_send<F: KernelFamily>(kernel: &Kernel, route: &Route<F>, ifindex: u32) -> bool {
    matches!(route.kind, RouteKind::Neighbour)
        && (route.ifindex == ifindex
            || NodeTables::<F>::device(kernel, route.ifindex)
                .is_some_and(|device| device.flags & DEVICE_XDP_REDIRECT != 0))
}

/// Sends a translated frame.
#[inline(always)]
fn send<F: Family>(ctx: &XdpContext, route: &Route<F>, ifindex: u32) -> u32 {
    if !rewrite::macs(bounds(ctx), Some(route.to), Some(route.from)) {
        return failed();
    }
    if route.ifindex == ifindex {
        return XDP_TX;
    }
    redirect(route.ifindex, 0) as u32
}

#[inline(always)]
fn failed() -> u32 {
    count(Counter::RewriteFailed);
    XDP_DROP
}

/// Writes headers and the transport checksum. At XDP the checksum always covers the whole packet, never
/// CHECKSUM_PARTIAL.
#[inline(always)]
fn write<F: Header>(bounds: Bounds, packet: &Packet<F>, to: &Tuple<F>, hops: u8) -> bool {
    let from = &packet.tuple;
    // As at tc: the verifier does not know the value of an offset outside the stack.
    let packet = &Packet { transport: core::hint::black_box(packet.transport) & LONGEST_MASK, ..*packet };
    let Some(field) = bounds.at(packet.checksum_offset(), size_of::<u16>()) else { return false };
    let change = checksum::addresses(from, to) + checksum::ports(from, to);
    // SAFETY: the field was just checked.
    unsafe {
        let sum = read::<u16>(field);
        let updated = if packet.protocol == PROTOCOL_TCP {
            checksum::update(sum, change)
        } else {
            checksum::update_udp(sum, change)
        };
        rewrite::write(field, updated);
    }
    rewrite::headers(bounds, ETHERNET, packet.transport, from, to, hops)
}

/// The same for headers without options, where all offsets are constants.
#[inline(always)]
fn in_place<F: Header>(ctx: &XdpContext, key: &FlowKey<F>, to: &Tuple<F>, hops: u8) -> bool {
    let bounds = bounds(ctx);
    let transport = ETHERNET + F::HEADER;
    let is_tcp = key.protocol == PROTOCOL_TCP;
    let field = transport + if is_tcp { tcp::CHECKSUM } else { udp::CHECKSUM };
    let Some(field) = bounds.at(field, size_of::<u16>()) else { return false };
    let from = &key.tuple;
    // One after the other: registers are scarce.
    let was = checksum::sum_of_addresses(from);
    compiler_fence(Ordering::SeqCst);
    let is = checksum::sum_of_addresses(to);
    compiler_fence(Ordering::SeqCst);
    let change = checksum::difference(was, is) + checksum::ports(from, to);
    // SAFETY: the field was just checked.
    unsafe {
        let sum = read::<u16>(field);
        let updated = if is_tcp { checksum::update(sum, change) } else { checksum::update_udp(sum, change) };
        rewrite::write(field, updated);
    }
    rewrite::headers(bounds, ETHERNET, transport, from, to, hops)
}
