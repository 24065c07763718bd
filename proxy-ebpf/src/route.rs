//! Routing by the kernel's own tables.

use core::{ffi::c_void, mem};

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::generated,
};
use proxy_common::{
    Family, V4, V6,
    decide::{Route, RouteKind},
    layout::flow::Mac,
    packet::read,
};

use crate::settings::HAS_FIB_SRC;

/// Asks for the source address (6.7).
pub(crate) const BPF_FIB_LOOKUP_SRC: u32 = 1 << 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where a family's addresses stand in the kernel's structures.
pub(crate) trait Routed: Family {
    fn set(params: &mut bpf_fib_lookup, src: &Self::Addr, dst: &Self::Addr);
    fn next_hop(params: &bpf_fib_lookup) -> Self::Addr;
    fn source(params: &bpf_fib_lookup) -> Self::Addr;
    fn neighbour(next_hop: &Self::Addr) -> bpf_redir_neigh;
}

impl Routed for V4 {
    #[inline(always)]
    fn set(params: &mut bpf_fib_lookup, src: &u32, dst: &u32) {
        params.family = AF_INET;
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
        params.nh_family = AF_INET as u32;
        params.__bindgen_anon_1.ipv4_nh = *next_hop;
        params
    }
}

impl Routed for V6 {
    #[inline(always)]
    fn set(params: &mut bpf_fib_lookup, src: &[u32; 4], dst: &[u32; 4]) {
        params.family = AF_INET6;
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
        params.nh_family = AF_INET6 as u32;
        params.__bindgen_anon_1.ipv6_nh = *next_hop;
        params
    }
}

/// Looks up the route of a packet that comes in by `ifindex`.
///
/// The length is left out, and so the MTU check.
#[inline(always)]
pub(crate) fn look_up<F: Routed>(
    ctx: *mut c_void,
    ifindex: u32,
    src: &F::Addr,
    dst: &F::Addr,
    route: &mut Route<F>,
) {
    // SAFETY: all zero is a valid value of these integers.
    let mut params: bpf_fib_lookup = unsafe { mem::zeroed() };
    F::set(&mut params, src, dst);
    params.ifindex = ifindex;
    // SAFETY: a context and parameters of the size that is given.
    let result =
        unsafe { generated::bpf_fib_lookup(ctx, &mut params, size_of::<bpf_fib_lookup>() as i32, 0) };
    route.ifindex = params.ifindex;
    route.next_hop = F::next_hop(&params);
    route.from = mac(&params.smac);
    route.to = mac(&params.dmac);
    route.kind = match result as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => RouteKind::Neighbour,
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            route.to = Mac::NONE;
            RouteKind::Unresolved
        }
        // One of the node's own addresses, or something that the stack will refuse.
        BPF_FIB_LKUP_RET_NOT_FWDED | BPF_FIB_LKUP_RET_FWD_DISABLED => RouteKind::Local,
        _ => RouteKind::None,
    };
}

/// The source address that the route of such a packet prefers, where the kernel tells it.
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
    // SAFETY: all zero is a valid value of these integers.
    let mut params: bpf_fib_lookup = unsafe { mem::zeroed() };
    F::set(&mut params, src, dst);
    params.ifindex = ifindex;
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: a context and parameters of the size that is given.
    let result = unsafe { generated::bpf_fib_lookup(ctx, &mut params, size, BPF_FIB_LOOKUP_SRC) };
    *preferred = F::source(&params);
    matches!(result as u32, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH)
}

#[inline(always)]
fn mac(bytes: &[u8; 6]) -> Mac {
    let start = bytes.as_ptr();
    // SAFETY: three words within six bytes, at an even offset of an aligned structure.
    unsafe { Mac([read(start), read(start.wrapping_add(2)), read(start.wrapping_add(4))]) }
}
