//! Bits that the program `probe` returns.

/// `bpf_l4_csum_replace` takes `BPF_F_IPV6` (6.16).
pub const PROBED_CSUM_IPV6: u32 = 1;
/// `bpf_fib_lookup` takes `BPF_FIB_LOOKUP_SRC` (6.7).
pub const PROBED_FIB_SRC: u32 = 2;
