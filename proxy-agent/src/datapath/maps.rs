//! Opens pinned maps with their types, which [`table`] has. The agent and `debug` go through here.

use std::{io, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Pod,
    maps::{Map, MapData, MapInfo, PerCpuArray},
};
use proxy_common::{
    V4, V6,
    layout::{
        config::StoredSettings,
        counter::Counter,
        maps::{self, DeclaredMap, Definition, Kind, table},
    },
};

use super::{address::UserFamily, array::MmapArray, by_use::ByUseMap, map_types::os_error, pins::Pins};
pub use super::{
    hash::Hash,
    map_types::{Array, SocketStorage, Trie},
};

/// The handle of a hash map of the table.
pub type HashOf<M> = Hash<<M as DeclaredMap>::Key, <M as DeclaredMap>::Value>;

/// The handle of an array of the table.
pub type ArrayOf<M> = Array<<M as DeclaredMap>::Value>;

/// The handle of a map of prefixes of the table.
pub type TrieOf<M> = Trie<<M as DeclaredMap>::Key, <M as DeclaredMap>::Value>;

/// The handle of a socket storage of the table.
pub type StorageOf<M> = SocketStorage<<M as DeclaredMap>::Value>;

/// A family whose layouts aya can copy; both are.
pub trait MapFamily: UserFamily<Addr: Pod + Send, Pad: Send, SlotPad: Send> {
    /// `frontends`.
    fn frontends(pins: &Pins) -> Result<HashOf<table::Frontends<Self>>> {
        hash::<table::Frontends<Self>>(pins)
    }
    /// `backends`.
    fn backends(pins: &Pins) -> Result<ArrayOf<table::Backends<Self>>> {
        array::<table::Backends<Self>>(pins)
    }
    /// `flows`.
    fn flows(pins: &Pins) -> Result<HashOf<table::Flows<Self>>> {
        hash::<table::Flows<Self>>(pins)
    }
    /// `pending`.
    fn pending(pins: &Pins) -> Result<HashOf<table::Pending<Self>>> {
        hash::<table::Pending<Self>>(pins)
    }
    /// `outbound`.
    fn outbound(pins: &Pins) -> Result<HashOf<table::Outbound<Self>>> {
        hash::<table::Outbound<Self>>(pins)
    }
    /// `snat_sources`.
    fn snat_sources(pins: &Pins) -> Result<ArrayOf<table::SnatSources<Self>>> {
        array::<table::SnatSources<Self>>(pins)
    }
    /// `sockets`.
    fn sockets(pins: &Pins) -> Result<HashOf<table::Sockets<Self>>> {
        hash::<table::Sockets<Self>>(pins)
    }
    /// `peer_cells`.
    fn peer_cells(pins: &Pins) -> Result<ArrayOf<table::PeerCells<Self>>> {
        array::<table::PeerCells<Self>>(pins)
    }
    /// `connected`.
    fn connected(pins: &Pins) -> Result<StorageOf<table::Connected<Self>>> {
        storage::<table::Connected<Self>>(pins)
    }
    /// `udp_peers`.
    fn udp_peers(pins: &Pins) -> Result<StorageOf<table::UdpPeers<Self>>> {
        storage::<table::UdpPeers<Self>>(pins)
    }
    /// `node_addrs`.
    fn node_addrs(pins: &Pins) -> Result<HashOf<table::NodeAddrs<Self>>> {
        hash::<table::NodeAddrs<Self>>(pins)
    }
    /// `affinity`.
    fn affinity(pins: &Pins) -> Result<HashOf<table::Affinity<Self>>> {
        hash::<table::Affinity<Self>>(pins)
    }
    /// `source_ranges`.
    fn source_ranges(pins: &Pins) -> Result<TrieOf<table::SourceRanges<Self>>> {
        trie::<table::SourceRanges<Self>>(pins)
    }
    /// `destinations`.
    fn destinations(pins: &Pins) -> Result<TrieOf<table::Destinations<Self>>> {
        trie::<table::Destinations<Self>>(pins)
    }
    /// `service_cidrs`.
    fn service_cidrs(pins: &Pins) -> Result<ArrayOf<table::ServiceCidrs<Self>>> {
        array::<table::ServiceCidrs<Self>>(pins)
    }
    /// `netns`.
    fn netns(pins: &Pins) -> Result<HashOf<table::Netns<Self>>> {
        hash::<table::Netns<Self>>(pins)
    }
}

impl MapFamily for V4 {}
impl MapFamily for V6 {}

/// `service_names`.
pub fn service_names(pins: &Pins) -> Result<HashOf<table::ServiceNames>> {
    hash::<table::ServiceNames>(pins)
}

/// `interfaces`.
pub fn interfaces(pins: &Pins) -> Result<HashOf<table::Interfaces>> {
    hash::<table::Interfaces>(pins)
}

/// `packet_pods`, to look at.
pub fn packet_pods(pins: &Pins) -> Result<HashOf<table::PacketPods>> {
    hash::<table::PacketPods>(pins)
}

/// `backend_sets`, to look at.
pub fn backend_sets(pins: &Pins) -> Result<ArrayOf<table::BackendSets>> {
    array::<table::BackendSets>(pins)
}

/// `backend_states`, to look at.
pub fn backend_states(pins: &Pins) -> Result<ArrayOf<table::BackendStates>> {
    array::<table::BackendStates>(pins)
}

/// `vip_filter`, to look at.
pub fn vip_filter(pins: &Pins) -> Result<ArrayOf<table::VipFilter>> {
    array::<table::VipFilter>(pins)
}

/// `settings`, to look at.
pub fn settings(pins: &Pins) -> Result<StoredSettings> {
    Ok(array::<table::Settings>(pins)?.element(0)?)
}

/// `settings`, to write.
pub(super) fn write_settings(pins: &Pins, settings: StoredSettings) -> Result<()> {
    let mut map = array::<table::Settings>(pins)?;
    map.set(0, settings).context("cannot write the map `settings`")
}

/// Compares every pinned map with the table, so that a foreign layout shows before it is used: aya does not check a pinned map.
pub(super) fn check_layouts(pins: &Pins) -> Result<()> {
    maps::all().try_for_each(|map| check_layout(map, &pins.map(map.name))).context(
        "the pinned maps are not of this version: `proxy-agent cleanup` removes them (services stop until the agent runs \
         again), or name another directory with --bpffs",
    )
}

fn check_layout(map: &Definition, path: &Path) -> Result<()> {
    let info = match MapInfo::from_pin(path) {
        Ok(info) => info,
        // Maps of a group that no release had yet do not exist.
        Err(error) if os_error(&error).is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => {
            return Ok(());
        }
        Err(error) => return Err(explain(error.into(), path)),
    };
    let found = (info.map_type()? as u32, info.key_size(), info.value_size());
    let (kind, key_size, value_size) = match map.by_use() {
        // An array of maps.
        Some(_) => (Kind::ArrayOfMaps, 4, 4),
        None => (map.kind, map.key_size, map.value_size),
    };
    ensure!(
        (found.0, found.1) == (kind as u32, key_size) && [0, found.2].contains(&value_size),
        "the map {} is of type {} with keys of {} bytes and values of {}; this version has {kind:?} ({}), {key_size} and {value_size}",
        path.display(),
        found.0,
        found.1,
        found.2,
        kind as u32,
    );
    Ok(())
}

/// What the programs counted, summed over CPUs.
pub fn counters(pins: &Pins) -> Result<Vec<(Counter, u64)>> {
    let map: PerCpuArray<MapData, u64> = Map::PerCpuArray(open::<table::Counters>(pins)?).try_into()?;
    let sum = |counter: &Counter| {
        let values = map.get(&(*counter as u32), 0)?;
        Ok((*counter, values.iter().sum()))
    };
    Counter::ALL.iter().map(sum).collect()
}

/// The capacity of a pinned map in entries; `None` if the map does not exist.
pub fn capacity(pins: &Pins, map: &str) -> Option<u32> {
    if let Some(definition) = maps::find(map).filter(|map| map.by_use().is_some()) {
        return ByUseMap::open(pins, definition).and_then(|map| map.capacity()).ok();
    }
    Some(MapInfo::from_pin(pins.map(map)).ok()?.max_entries())
}

/// Maps an array for writing.
pub(super) fn mmap<M: DeclaredMap<Value: Pod>>(pins: &Pins) -> Result<MmapArray<M::Value>> {
    MmapArray::map(&open::<M>(pins)?)
        .with_context(|| format!("cannot map the map `{}` into memory", M::DEFINITION.name))
}

/// A hash map, LRU or not. Of one that grows by use the map into which programs insert, and the one that it replaces.
pub(super) fn hash<M: DeclaredMap<Key: Pod, Value: Pod>>(pins: &Pins) -> Result<HashOf<M>> {
    let path = pins.map(M::DEFINITION.name);
    let open = || match maps::find(M::DEFINITION.name).filter(|map| map.by_use().is_some()) {
        Some(definition) => {
            let map = ByUseMap::open(pins, definition)?;
            // In this order: an entry that is moved meanwhile is in one of them.
            let current = map.current()?;
            Hash::replacing(current, map.previous()?)
        }
        None => Hash::open_pinned(&path),
    };
    open().map_err(|error| explain(error.into(), &path))
}

/// Of a map that grows by use the array, and the map into which programs insert, alone.
pub(super) fn current<M: DeclaredMap<Key: Pod, Value: Pod>>(pins: &Pins) -> Result<(ByUseMap, HashOf<M>)> {
    let path = pins.map(M::DEFINITION.name);
    let open = || {
        let definition = maps::find(M::DEFINITION.name).ok_or(io::ErrorKind::NotFound)?;
        let map = ByUseMap::open(pins, definition)?;
        let current = Hash::replacing(map.current()?, None)?;
        Ok::<_, io::Error>((map, current))
    };
    open().map_err(|error| explain(error.into(), &path))
}

fn open<M: DeclaredMap>(pins: &Pins) -> Result<MapData> {
    let path = pins.map(M::DEFINITION.name);
    MapData::from_pin(&path).map_err(|error| explain(error.into(), &path))
}

fn explain(error: anyhow::Error, path: &Path) -> anyhow::Error {
    let error = error.context(format!("cannot open the map {}", path.display()));
    if path.exists() {
        error
    } else {
        error.context("no agent has run with these pins (name the directory with --bpffs)")
    }
}

fn array<M: DeclaredMap<Value: Pod>>(pins: &Pins) -> Result<ArrayOf<M>> {
    Ok(Array::new(open::<M>(pins)?)?)
}

fn trie<M: DeclaredMap<Key: Pod, Value: Pod>>(pins: &Pins) -> Result<TrieOf<M>> {
    Ok(Trie::new(open::<M>(pins)?)?)
}

fn storage<M: DeclaredMap<Value: Pod>>(pins: &Pins) -> Result<StorageOf<M>> {
    Ok(SocketStorage::new(open::<M>(pins)?)?)
}
