//! Tunnels that take their remote end from the route (GRE without a remote address) pass packets in with their
//! outer header in front: the kernel keeps it as link-layer header (`ipgre_header_ops`, `ip6gre_header_ops`).

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, bpf_hdr_start_off::BPF_HDR_START_NET},
    helpers::generated::bpf_skb_load_bytes_relative,
    programs::TcContext,
};
use proxy_common::{
    layout::device::DEVICE_GRE,
    packet::{
        Bytes as _, PROTOCOL_GRE, VERSION_IPV4, VERSION_IPV6, extensions,
        field::{ipv4, ipv6},
    },
};

use super::bounds;
use crate::{
    context::{Skb, redirect},
    maps::interface,
};

/// Whether the packet begins with an outer header.
#[inline(always)]
pub(super) fn has_outer_header(ctx: &TcContext) -> bool {
    may_be_gre(ctx) && is_gre_device(ctx) && is_in_front_of_network_header(ctx)
}

/// Whether the first header may be the outer header of a GRE packet; nearly always false.
#[inline(always)]
fn may_be_gre(ctx: &TcContext) -> bool {
    let Some(header) = bounds(ctx).at(0, ipv4::PROTOCOL + 1) else { return false };
    // SAFETY: within the bounds just checked.
    let byte = |at: usize| unsafe { *header.wrapping_add(at) };
    match byte(ipv4::VERSION_IHL) >> 4 {
        VERSION_IPV4 => byte(ipv4::PROTOCOL) == PROTOCOL_GRE,
        // The tunnel's encapsulation limit (RFC 2473) is an option.
        VERSION_IPV6 => matches!(byte(ipv6::NEXT_HEADER), PROTOCOL_GRE | extensions::DESTINATION),
        _ => false,
    }
}

#[inline(always)]
fn is_gre_device(ctx: &TcContext) -> bool {
    interface(Skb(ctx.skb.skb).ifindex()).is_some_and(|device| device.flags & DEVICE_GRE != 0)
}

/// Whether the first header is not the network header. Headers of different packets differ in their lengths at
/// least.
#[inline(always)]
fn is_in_front_of_network_header(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    let mut network = [0u32; 2];
    let (to, size) = ((&raw mut network).cast(), size_of_val(&network) as u32);
    // SAFETY: the context, and so many bytes on the stack.
    let result = unsafe { bpf_skb_load_bytes_relative(skb.cast(), 0, to, size, BPF_HDR_START_NET) };
    result == 0 && Skb(skb).load::<[u32; 2]>(0).is_some_and(|first| first != network)
}

/// Has the packet received again by the same device, without the outer header: `bpf_redirect` removes the bytes
/// in front of the network header where the device has no Ethernet headers (`__bpf_redirect_no_mac`).
#[inline(always)]
pub(super) fn receive_without(ctx: &TcContext) -> i32 {
    redirect(Skb(ctx.skb.skb).ifindex(), BPF_F_INGRESS) as i32
}
