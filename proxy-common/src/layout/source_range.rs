//! `source_ranges_v4`, `source_ranges_v6`: LPM_TRIE, written by the agent: clients that may use frontends with
//! [`FRONTEND_SOURCE_RANGES`](super::frontend::FRONTEND_SOURCE_RANGES). Read for their new flows only.

use super::id::Id;
use crate::{Family, V4, V6};

/// Entries of the map. A trie takes memory for its contents only.
pub const MAX_SOURCE_RANGES: u32 = 1 << 18;

/// The key of the trie behind the prefix length: a prefix of the clients of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SourceRange<F: Family> {
    /// The service port; the prefix always includes all its bits.
    pub service: Id,
    /// The prefix.
    pub addr: F::Addr,
}

impl<F: Family> SourceRange<F> {
    /// Bits in front of the address, which the key's prefix length includes.
    pub const SERVICE_BITS: u32 = 32;
}

super::plain!(SourceRange<F>);

const _: () = assert!(size_of::<SourceRange<V4>>() == 8 && size_of::<SourceRange<V6>>() == 20);
