//! `next_hops_v4`, `next_hops_v6`: mmap-able ARRAYs by hash, written by the packet programs with each look-up
//! of the FIB: neighbours that they send to. The agent probes those. One more element behind the slots has the
//! agent's heartbeat.
//!
//! `bpf_fib_lookup` also returns a neighbour that is STALE, and frames sent by XDP never make the kernel probe
//! it.

use crate::{Family, V4, V6};

/// Slots of each family; two next hops with the same slot overwrite each other.
pub const SLOTS: u32 = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 10;

/// Index of the element whose [`NextHop::last_used`] is the agent's heartbeat; 0: no agent has ever written it.
pub const HEARTBEAT: u32 = SLOTS;

/// Elements of each map.
pub const ELEMENTS: u32 = SLOTS + 1;

/// A neighbour that packets are sent to. All zero: an empty slot.
///
/// Programs of several CPUs write without a lock: a torn entry is no neighbour that the kernel knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NextHop<F: Family> {
    /// Its address.
    pub addr: F::Addr,
    /// Index of the interface of the neighbour.
    pub ifindex: u32,
    /// When a packet was last routed to it, in jiffies, truncated.
    pub last_used: u32,
    /// When XDP last left a packet for it to tc although it could have sent the packet, in jiffies, truncated.
    pub handed_over: u32,
}

impl<F: Family> NextHop<F> {
    /// The slot of a neighbour.
    #[inline(always)]
    pub fn slot(addr: &F::Addr, ifindex: u32) -> u32 {
        let word = F::fold(addr) ^ ifindex.rotate_left(u32::BITS / 2);
        word.wrapping_mul(0x9e37_79b9) >> (u32::BITS - SLOT_BITS)
    }
}

super::plain!(NextHop<F>);

const _: () = assert!(size_of::<NextHop<V4>>() == 16 && size_of::<NextHop<V6>>() == 28);
