//! Maps that grow while they are used: flows, sockets and clients.
//!
//! The kernel allocates all entries of an LRU map when it makes the map. So these begin small. In the object each is an array of maps, and
//! programs look entries up in its [`CURRENT`] element. When more than half of that map is used, the agent
//!
//! 1. makes a larger one,
//! 2. sets [`PREVIOUS`] to the present map and then [`CURRENT`] to the larger one. From now on entries are inserted there, and those that
//!    are not found there are looked up in the other,
//! 3. copies the entries that the larger map lacks, and removes the element [`PREVIOUS`].
//!
//! Programs remove an entry from the previous map first, and the agent removes what it copied if the previous map no longer has it: so a
//! removed entry stays removed.
//!
//! Programs count their insertions in `insertions`, each CPU for itself, and signal every [`STEP`]th by `growth_signals`.

use super::maps::{Definition, Size};

/// The element with the map into which entries are inserted.
pub const CURRENT: u32 = 0;
/// The element with the map that is replaced; empty unless its entries are being copied.
pub const PREVIOUS: u32 = 1;
/// Elements of each array.
pub const SLOTS: usize = 2;

/// Entries of maps of flows at first: 16,384 flows.
pub const FIRST_FLOWS: u32 = 1 << 15;
/// Entries of maps of sockets and clients at first.
pub const FIRST_CLIENTS: u32 = 1 << 14;

/// Insertions of one CPU between two signals.
pub const STEP: u64 = 256;

/// Entries for each CPU at first, at least. Each CPU keeps up to 128 free entries of an LRU map for itself (`LOCAL_FREE_TARGET` in
/// `kernel/bpf/bpf_lru_list.c`), and signals after [`STEP`].
pub const FIRST_PER_CPU: u32 = 4 * STEP as u32;

/// Maps that grow by use, those of both families counted apart.
pub const MAPS: u32 = 4 * FAMILIES;

/// Bytes of `growth_signals`: the largest page, which is the kernel's least.
pub const RING_BYTES: u32 = 1 << 16;

const FAMILIES: u32 = 2;

/// The index of a map in `insertions`; `None` if it does not grow by use.
pub const fn insertions_of(map: &Definition) -> Option<u32> {
    match (map.size, map.family) {
        (Size::ByUse(by_use), Some(family)) => Some(by_use.number * FAMILIES + family as u32),
        _ => None,
    }
}
