//! `destinations_v4`, `destinations_v6`: LPM_TRIE, written by the agent: properties of a route that
//! `bpf_fib_lookup` does not report. Read with each look-up of the FIB, where a device has
//! [`DEVICE_DESTINATIONS`](super::device::DEVICE_DESTINATIONS).

use crate::{Family, V4, V6};

/// Entries of the map: room for the prefixes of IPsec policies and of routes, old and new ones together.
pub const MAX_DESTINATIONS: u32 = 8192;

/// The key of the trie behind the prefix length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination<F: Family> {
    /// The prefix.
    pub addr: F::Addr,
}

/// Properties of a destination. The longest prefix decides, so a prefix without properties hides those of a
/// shorter one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RouteHint {
    /// `HINT_*` bits.
    pub flags: u32,
    /// Longest IP packet in bytes, of routes whose MTU the kernel's forwarding obeys and `bpf_fib_lookup` does
    /// not; 0: unset.
    pub mtu: u32,
    /// Index of the device of a route with an encapsulation, which `bpf_fib_lookup` does not report; 0: unset.
    pub ifindex: u32,
}

/// An IPsec (`xfrm`) policy of the node covers it: the stack sends.
pub const HINT_STACK: u32 = 1;

super::plain!(Destination<F>, RouteHint);

const _: () = assert!(size_of::<Destination<V4>>() == 4 && size_of::<Destination<V6>>() == 16);
const _: () = assert!(size_of::<RouteHint>() == 12);
