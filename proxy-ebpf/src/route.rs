//! Routing by the kernel's tables.

pub(crate) mod fib_cache;
pub(crate) mod hop_route;
pub(crate) mod next_hop;

use core::{ffi::c_void, mem};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup,
        bpf_redir_neigh,
    },
    helpers::generated,
};
use proxy_common::{
    V4, V6,
    decide::{Route, RouteKind},
    layout::{
        destination::{HINT_STACK, RouteHint},
        device::{DEVICE_DESTINATIONS, DEVICE_L3, DEVICE_STACK, Device},
        flow::{FlowDraft, Mac},
    },
    packet::read,
};

use crate::{
    maps::{FamilyMaps, interface},
    settings::HAS_FIB_SRC,
};

/// Requests the source address (6.7).
pub(crate) const BPF_FIB_LOOKUP_SRC: u32 = 1 << 4;

/// Positions of a family's addresses in the kernel's structures.
pub(crate) trait Routed: FamilyMaps {
    /// The kernel's number of the family.
    const ADDRESS_FAMILY: u8;

    fn set(params: &mut bpf_fib_lookup, src: &Self::Addr, dst: &Self::Addr);
    fn next_hop(params: &bpf_fib_lookup) -> Self::Addr;
    fn source(params: &bpf_fib_lookup) -> Self::Addr;
    fn neighbour(next_hop: &Self::Addr) -> bpf_redir_neigh;
}

impl Routed for V4 {
    /// `AF_INET`
    const ADDRESS_FAMILY: u8 = 2;

    #[inline(always)]
    fn set(params: &mut bpf_fib_lookup, src: &u32, dst: &u32) {
        params.family = Self::ADDRESS_FAMILY;
        params.__bindgen_anon_3.ipv4_src = *src;
        params.__bindgen_anon_4.ipv4_dst = *dst;
    }

    #[inline(always)]
    fn next_hop(params: &bpf_fib_lookup) -> u32 {
        // SAFETY: integers; the kernel wrote this member.
        unsafe { params.__bindgen_anon_4.ipv4_dst }
    }

    #[inline(always)]
    fn source(params: &bpf_fib_lookup) -> u32 {
        // SAFETY: as above.
        unsafe { params.__bindgen_anon_3.ipv4_src }
    }

    #[inline(always)]
    fn neighbour(next_hop: &u32) -> bpf_redir_neigh {
        // SAFETY: all zero is a valid value of these integers.
        let mut params: bpf_redir_neigh = unsafe { mem::zeroed() };
        params.nh_family = Self::ADDRESS_FAMILY.into();
        params.__bindgen_anon_1.ipv4_nh = *next_hop;
        params
    }
}

impl Routed for V6 {
    /// `AF_INET6`
    const ADDRESS_FAMILY: u8 = 10;

    #[inline(always)]
    fn set(params: &mut bpf_fib_lookup, src: &[u32; 4], dst: &[u32; 4]) {
        params.family = Self::ADDRESS_FAMILY;
        params.__bindgen_anon_3.ipv6_src = *src;
        params.__bindgen_anon_4.ipv6_dst = *dst;
    }

    #[inline(always)]
    fn next_hop(params: &bpf_fib_lookup) -> [u32; 4] {
        // SAFETY: as above.
        unsafe { params.__bindgen_anon_4.ipv6_dst }
    }

    #[inline(always)]
    fn source(params: &bpf_fib_lookup) -> [u32; 4] {
        // SAFETY: as above.
        unsafe { params.__bindgen_anon_3.ipv6_src }
    }

    #[inline(always)]
    fn neighbour(next_hop: &[u32; 4]) -> bpf_redir_neigh {
        // SAFETY: as above.
        let mut params: bpf_redir_neigh = unsafe { mem::zeroed() };
        params.nh_family = Self::ADDRESS_FAMILY.into();
        params.__bindgen_anon_1.ipv6_nh = *next_hop;
        params
    }
}

/// Parameters and result of the kernel's look-up, in the CPU's [`FamilyMaps::draft`]: the stack has no room for
/// them.
#[inline(always)]
fn params<F: Routed>() -> Option<&'static mut bpf_fib_lookup> {
    const { assert!(size_of::<bpf_fib_lookup>() <= size_of::<FlowDraft<F>>()) };
    // SAFETY: this CPU's own memory, large enough; the core writes both entries to it later. All bytes are
    // valid integers.
    F::draft().map(|draft| unsafe { &mut *draft.cast::<bpf_fib_lookup>() })
}

/// Looks up the route of a packet of `size` bytes (0: of any size) that comes in by `ifindex`.
#[inline(always)]
pub(crate) fn look_up<F: Routed>(
    ctx: *mut c_void,
    ifindex: u32,
    src: &F::Addr,
    dst: &F::Addr,
    size: u32,
    route: &mut Route<F>,
) {
    route.kind = RouteKind::None;
    let Some(params) = params::<F>() else { return };
    // The largest size that the kernel takes. Longer packets are too big on every route.
    let size = if size > u16::MAX as u32 { u16::MAX } else { size as u16 };
    let result = ask::<F>(ctx, params, ifindex, (src, dst), size, 0);
    // For a route with an encapsulation the kernel reports no device: the index stays that of the device by
    // which the packet came in.
    route.ifindex = params.ifindex;
    route.next_hop = F::next_hop(params);
    let device = interface(params.ifindex);
    route.names_next_hop =
        params.family == F::ADDRESS_FAMILY && device.is_none_or(|device| device.flags & DEVICE_L3 == 0);
    route.from = mac(&params.smac);
    route.to = mac(&params.dmac);
    let hint = hint::<F>(device, ifindex, dst);
    route.by_stack = device.is_some_and(|device| device.flags & DEVICE_STACK != 0)
        || hint.is_some_and(|hint| hint.flags & HINT_STACK != 0);
    route.kind = match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH if route.by_stack => RouteKind::Stack,
        BPF_FIB_LKUP_RET_SUCCESS => RouteKind::Neighbour,
        // Only the stack can apply an encapsulation of the route (`encap` of ip-route(8)).
        BPF_FIB_LKUP_RET_UNSUPP_LWT => {
            route.by_stack = true;
            if let Some(hint) = hint.filter(|hint| hint.ifindex != 0) {
                route.ifindex = hint.ifindex;
            }
            RouteKind::Stack
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            route.to = Mac::NONE;
            RouteKind::Unresolved
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            // SAFETY: both members are the same integer.
            let told = unsafe { params.__bindgen_anon_1.mtu_result };
            route.mtu = told as u32;
            if told == size {
                // Kernels before 5.12 report no MTU; the device's is used if another look-up finds the device.
                ask::<F>(ctx, params, ifindex, (src, dst), 0, 0);
                route.mtu = interface(params.ifindex).map_or(0, |device| device.mtu);
            }
            RouteKind::TooBig
        }
        // One of the node's own addresses, or a destination that the stack will refuse.
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED => RouteKind::Local,
        _ => RouteKind::None,
    };
    if let Some(hint) = hint {
        obey_mtu(hint.mtu, size, route);
    }
}

/// Compares a packet's size with the MTU of its route (0: unset), where the kernel did not.
#[inline(always)]
fn obey_mtu<F: Routed>(mtu: u32, size: u16, route: &mut Route<F>) {
    let is_shorter = match route.kind {
        RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::Stack => true,
        RouteKind::TooBig => mtu < route.mtu,
        RouteKind::Local | RouteKind::None => false,
    };
    if mtu != 0 && size as u32 > mtu && is_shorter {
        route.mtu = mtu;
        route.kind = RouteKind::TooBig;
    }
}

/// The properties of a destination that the FIB does not report. For a device that the agent does not know, the
/// flags of the device by which the packet came in decide: IPsec policies apply to all.
#[inline(always)]
fn hint<F: Routed>(leaves: Option<&Device>, came_in: u32, dst: &F::Addr) -> Option<&'static RouteHint> {
    let device = leaves.or_else(|| interface(came_in))?;
    if device.flags & DEVICE_DESTINATIONS != 0 { F::hint(dst) } else { None }
}

/// Fills in the parameters and calls the kernel's look-up.
#[inline(always)]
fn ask<F: Routed>(
    ctx: *mut c_void,
    params: &mut bpf_fib_lookup,
    ifindex: u32,
    (src, dst): (&F::Addr, &F::Addr),
    size: u16,
    flags: u32,
) -> i64 {
    params.l4_protocol = 0;
    params.sport = 0;
    params.dport = 0;
    params.__bindgen_anon_1.tot_len = size;
    params.ifindex = ifindex;
    params.__bindgen_anon_2.flowinfo = 0;
    F::set(params, src, dst);
    params.__bindgen_anon_5.tbid = 0;
    // SAFETY: a context and parameters of the size that is given.
    unsafe { generated::bpf_fib_lookup(ctx, params, size_of::<bpf_fib_lookup>() as i32, flags) }
}

/// The source address that the route of such a packet prefers, where the kernel reports it.
#[inline(always)]
pub(crate) fn preferred_source<F: Routed>(
    ctx: *mut c_void,
    ifindex: u32,
    src: &F::Addr,
    dst: &F::Addr,
    preferred: &mut F::Addr,
) -> bool {
    if HAS_FIB_SRC.load() == 0 {
        return false;
    }
    let Some(params) = params::<F>() else { return false };
    let result = ask::<F>(ctx, params, ifindex, (src, dst), 0, BPF_FIB_LOOKUP_SRC);
    *preferred = F::source(params);
    matches!(result as u32, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)
}

#[inline(always)]
fn mac(bytes: &[u8; 6]) -> Mac {
    let start = bytes.as_ptr();
    // SAFETY: three words within six bytes, at an even offset of an aligned structure.
    unsafe { Mac([read(start), read(start.wrapping_add(2)), read(start.wrapping_add(4))]) }
}
