//! `affinity_v4`, `affinity_v6`: LRU HASH, written by the programs: the backend that each client had.

use super::id::Id;
use crate::{Family, V4, V6};

/// A client of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct AffinityKey<F: Family> {
    /// The client's address, before any translation; unspecified for an unbound socket.
    pub client: F::Addr,
    /// The service port: all its frontends share the entry.
    pub service: Id,
    pad: F::Pad,
    /// Cookie of the network namespace for sockets, whose source is not known when they connect; 0 for packets.
    pub netns: u64,
}

impl<F: Family> AffinityKey<F> {
    /// A key.
    #[inline(always)]
    pub fn new(client: F::Addr, netns: u64, service: Id) -> Self {
        Self { client, service, pad: F::Pad::default(), netns }
    }
}

/// The backend that a client had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Affinity<F: Family> {
    /// Its address.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
    /// `BACKEND_*` bits.
    pub flags: u16,
    /// The backend's id: it is kept only while it is a member of the set that the program chooses from.
    pub backend: Id,
    /// When the client opened its last flow, in jiffies, truncated. After 2^32 jiffies (at least 49 days) an
    /// unused entry that the map did not evict looks fresh again.
    pub last_used: u32,
}

super::plain!(AffinityKey<F>, Affinity<F>);

const _: () = {
    assert!(size_of::<AffinityKey<V4>>() == 16 && size_of::<AffinityKey<V6>>() == 32);
    assert!(size_of::<Affinity<V4>>() == 16 && size_of::<Affinity<V6>>() == 28);
};
