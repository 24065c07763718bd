//! `destinations_v4`, `destinations_v6`: LPM_TRIE, written by the agent: what `bpf_fib_lookup` does not report of a route. Read with each
//! look-up of the FIB, where a device has [`DEVICE_DESTINATIONS`](super::device::DEVICE_DESTINATIONS).

use crate::{Family, V4, V6};

/// Entries of the map: room for the prefixes of IPsec policies and of routes, and as many of before.
pub const MAX_DESTINATIONS: u32 = 8192;

/// What stands behind the prefix length in a key of the trie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination<F: Family> {
    /// The prefix.
    pub addr: F::Addr,
}

/// What holds for a destination. The longest prefix decides, so one without anything of this stands in front of a longer one that has
/// something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RouteHint {
    /// `HINT_*` bits.
    pub flags: u32,
    /// Longest IP packet in bytes, of routes for which the kernel's forwarding obeys it and `bpf_fib_lookup` does not; 0: unset.
    pub mtu: u32,
    /// Index of the device of a route with an encapsulation, of which `bpf_fib_lookup` reports none; 0: unset.
    pub ifindex: u32,
}

/// An IPsec (`xfrm`) policy of the node is for it: the stack sends.
pub const HINT_STACK: u32 = 1;

super::plain!(Destination<F>, RouteHint);

const _: () = assert!(size_of::<Destination<V4>>() == 4 && size_of::<Destination<V6>>() == 16);
const _: () = assert!(size_of::<RouteHint>() == 12);
