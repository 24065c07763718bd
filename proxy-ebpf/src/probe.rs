//! Run once by the agent, never attached: what this kernel can do that no version number tells.

use aya_ebpf::{bindings::BPF_F_PSEUDO_HDR, helpers::generated::bpf_l4_csum_replace, programs::TcContext};

/// Returns 1 if `bpf_l4_csum_replace` takes `BPF_F_IPV6`, else 0. Wants a packet of 64 bytes or more.
#[inline(always)]
pub(crate) fn run(ctx: &TcContext) -> i32 {
    const BPF_F_IPV6: u64 = 1 << 7;
    const CHECKSUM: u32 = 14 + 40 + 6;
    // SAFETY: the context; unknown flags are an error without effect.
    let result =
        unsafe { bpf_l4_csum_replace(ctx.skb.skb, CHECKSUM, 0, 0, BPF_F_PSEUDO_HDR as u64 | BPF_F_IPV6) };
    (result == 0) as i32
}
