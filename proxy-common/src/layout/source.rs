//! `sources_v4`, `sources_v6`: LPM_TRIE, written by the agent: who may use frontends with
//! [`FRONTEND_SOURCES`](super::frontend::FRONTEND_SOURCES). Read for their new flows only.

use super::id::Id;
use crate::{Family, V4, V6};

/// Entries of the map. A trie takes memory for its contents only.
pub const MAX_SOURCES: u32 = 1 << 18;

/// What stands behind the prefix length in a key of the trie: a prefix of the clients of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Source<F: Family> {
    /// The service port; always whole.
    pub service: Id,
    /// The prefix.
    pub addr: F::Addr,
}

impl<F: Family> Source<F> {
    /// Bits in front of the address: they count in the key's prefix length.
    pub const SERVICE_BITS: u32 = 32;
}

super::plain!(Source<F>);

const _: () = assert!(size_of::<Source<V4>>() == 8 && size_of::<Source<V6>>() == 20);
