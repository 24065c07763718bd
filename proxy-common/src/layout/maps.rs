//! Every map, declared once: [`table`] is the list.
//!
//! The programs' maps take keys, values, entries and flags from it (`proxy-ebpf/src/maps.rs` adds the name to
//! pin by). So do the agent's handles, sizes, pins and layout checks (`datapath/maps.rs`, `datapath/sizes.rs`,
//! [`group`](super::group)), and the documents' tables (`cargo xtask codegen`). A test of the agent compares
//! the list with the compiled object.

pub mod table;

use super::group::Group;

/// `BPF_F_NO_PREALLOC`: memory is allocated by entry.
pub const ON_DEMAND: u32 = 1 << 0;

/// `BPF_F_MMAPABLE`: the agent writes the map through a mapping.
pub const MMAPABLE: u32 = 1 << 10;

/// A map, as a type: `<maps::table::BackendSets as DeclaredMap>::Value`.
pub trait DeclaredMap {
    /// Of an LPM trie: the key behind the prefix length.
    type Key;
    /// Of an array of maps: the id that the kernel returns to the agent.
    type Value;
    /// All other properties.
    const DEFINITION: Definition;
    /// [`Definition::entries`] for const parameters.
    const ENTRIES: usize = Self::DEFINITION.entries as usize;
    /// [`Definition::flags`] for const parameters.
    const FLAGS: usize = Self::DEFINITION.flags as usize;
}

/// Definition of a map.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The name in the object, and of the pin.
    pub name: &'static str,
    /// [`Family::INDEX`](crate::Family::INDEX) of the family whose map it is; `None` if both share it.
    pub family: Option<usize>,
    /// The kernel's type.
    pub kind: Kind,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value; 0 if only the programs define it ([`OfPrograms`]).
    pub value_size: u32,
    /// Entries in the object. The agent sets the number by [`size`](Self::size).
    pub entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// How many entries the agent gives it.
    pub size: Size,
    /// The group of maps with which it changes its layout.
    pub group: Group,
    /// `key -> value`, as text.
    pub doc: &'static str,
    /// Its writers, as text.
    pub written_by: &'static str,
    /// Its readers, as text.
    pub read_by: &'static str,
}

impl Definition {
    /// Whether its size follows its use, and how.
    pub const fn by_use(&self) -> Option<ByUse> {
        match self.size {
            Size::ByUse(by_use) => Some(by_use),
            _ => None,
        }
    }
}

/// The kernel's map types that are used; discriminants are those of `enum bpf_map_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
    ArrayOfMaps = 12,
    /// `BPF_MAP_TYPE_SK_STORAGE`.
    SkStorage = 24,
    /// `BPF_MAP_TYPE_RINGBUF`. Entries are bytes.
    RingBuf = 27,
}

impl Kind {
    /// Bytes of a key, from the key size in the table.
    const fn key_size(self, size: usize) -> u32 {
        match self {
            // The prefix length comes first.
            Self::LpmTrie => size as u32 + u32::BITS / 8,
            Self::RingBuf => 0,
            _ => size as u32,
        }
    }
}

/// How many entries the agent gives a map.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// The number in the object.
    InObject,
    /// This number.
    AtLoad(u32),
    /// By use, of a map of [`Kind::LruHash`].
    ByUse(ByUse),
    /// This number for a capacity that grows.
    Grows(Capacity, fn(u32) -> u32),
}

/// Size of a map that grows while it is used. In the object it is an array of maps with [`SLOTS`](super::by_use::SLOTS) elements.
#[derive(Clone, Copy, Debug)]
pub struct ByUse {
    /// Its place in `insertions`, both families apart.
    pub number: u32,
    /// Entries at first.
    pub first: u32,
    /// The most entries.
    pub most: Most,
}

/// The most entries of a map that grows while it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Most {
    /// This number.
    Entries(u32),
    /// `--max-flows`.
    Flows,
    /// [A part](PENDING_PART) of `--max-flows`, at least [`MIN_PENDING`].
    PendingFlows,
}

/// The map of unconfirmed flows has this part of the confirmed ones' entries.
pub const PENDING_PART: u32 = 4;

/// Minimum of entries for unconfirmed flows: with two for each and SYN-ACKs after 1, 3, 7 s, enough for thousands
/// of clients a second.
pub const MIN_PENDING: u32 = 1 << 16;

/// Capacities of the maps of services. The maps start small, and the agent replaces them by larger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Ids of service ports, of both families.
    ServicePorts,
    /// Ids of endpoints of service ports, of both families.
    Backends,
    /// Slots of a family: endpoints in the backend sets of its service ports.
    Slots,
    /// Frontends of a family.
    Frontends,
}

impl Capacity {
    /// All.
    pub const ALL: [Self; 4] = [Self::ServicePorts, Self::Backends, Self::Slots, Self::Frontends];

    /// The capacity of new maps.
    pub const fn initial(self) -> u32 {
        match self {
            Self::ServicePorts => 1 << 12,
            Self::Backends | Self::Slots => 1 << 14,
            Self::Frontends => 1 << 13,
        }
    }

    /// The largest capacity.
    pub const fn most(self) -> u32 {
        match self {
            Self::ServicePorts => 1 << 20,
            Self::Backends | Self::Slots => 1 << 22,
            Self::Frontends => 1 << 21,
        }
    }
}

/// Placeholder for a value type that is defined in `proxy-ebpf`, because only the programs use it.
#[derive(Clone, Copy, Debug)]
pub struct OfPrograms;

/// The definitions of all maps: shared ones first, then those of IPv4, then those of IPv6.
pub fn all() -> impl Iterator<Item = &'static Definition> {
    table::SHARED.iter().chain(table::OF_V4).chain(table::OF_V6)
}

/// The definition of the map of this name.
pub fn find(name: &str) -> Option<&'static Definition> {
    all().find(|map| map.name == name)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, vec::Vec};

    use super::*;
    use crate::layout::by_use;

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = all().map(|map| map.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(find("backend_sets").is_some_and(|map| map.family.is_none()));
        assert!(find("flows_v6").is_some_and(|map| map.family == Some(1)));
        assert!(find("flows").is_none());
    }

    #[test]
    fn both_families_have_the_same_maps() {
        let bases = |maps: &[Definition]| -> Vec<_> {
            maps.iter().map(|map| (map.name.rsplit_once('_').unwrap().0, map.kind, map.group)).collect()
        };
        assert_eq!(bases(table::OF_V4), bases(table::OF_V6));
    }

    #[test]
    fn insertions_are_counted_for_each_map_that_grows_by_use() {
        let numbers: BTreeSet<_> = all().filter_map(by_use::insertions_of).collect();
        assert!(numbers.into_iter().eq(0..by_use::MAPS));
        assert_eq!(all().filter(|map| map.by_use().is_some()).count(), by_use::MAPS as usize);
        assert!(all().all(|map| map.by_use().is_none() || map.kind == Kind::LruHash));
    }

    #[test]
    fn capacities_are_powers_of_two() {
        for capacity in Capacity::ALL {
            assert!(capacity.initial().is_power_of_two() && capacity.most().is_power_of_two());
            assert!(capacity.initial() < capacity.most());
        }
    }
}
