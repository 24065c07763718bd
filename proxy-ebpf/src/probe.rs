//! Run once by the agent, never attached: detects features of this kernel that the version number does not
//! show.

use core::mem;

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, bpf_fib_lookup},
    helpers::generated::{self, bpf_l4_csum_replace},
    programs::TcContext,
};
use proxy_common::{
    layout::probe::{PROBED_CSUM_IPV6, PROBED_FIB_SRC},
    packet::{ETHERNET, IPV6, field::udp},
};

use crate::route::BPF_FIB_LOOKUP_SRC;

/// Returns the features, as `PROBED_*` bits. Requires a packet of 64 bytes or more.
#[inline(always)]
pub(crate) fn run(ctx: &TcContext) -> i32 {
    let mut found = 0;
    if knows_csum_ipv6(ctx) {
        found |= PROBED_CSUM_IPV6;
    }
    if knows_fib_src(ctx) {
        found |= PROBED_FIB_SRC;
    }
    found as i32
}

/// Whether `bpf_l4_csum_replace` accepts `BPF_F_IPV6`.
#[inline(always)]
fn knows_csum_ipv6(ctx: &TcContext) -> bool {
    const BPF_F_IPV6: u64 = 1 << 7;
    const CHECKSUM: u32 = (ETHERNET + IPV6 + udp::CHECKSUM) as u32;
    // SAFETY: the context; unknown flags are an error without effect.
    unsafe { bpf_l4_csum_replace(ctx.skb.skb, CHECKSUM, 0, 0, BPF_F_PSEUDO_HDR as u64 | BPF_F_IPV6) == 0 }
}

/// Whether `bpf_fib_lookup` accepts `BPF_FIB_LOOKUP_SRC`. Without a device it fails, but unknown flags fail
/// before that.
#[inline(always)]
fn knows_fib_src(ctx: &TcContext) -> bool {
    const EINVAL: i64 = -22;
    // SAFETY: all zero is a valid value of these integers.
    let mut params: bpf_fib_lookup = unsafe { mem::zeroed() };
    params.family = 2; // AF_INET
    let size = size_of::<bpf_fib_lookup>() as i32;
    // SAFETY: the context, and parameters of the size that is given.
    let result =
        unsafe { generated::bpf_fib_lookup(ctx.skb.skb.cast(), &mut params, size, BPF_FIB_LOOKUP_SRC) };
    result as i32 as i64 != EINVAL
}
