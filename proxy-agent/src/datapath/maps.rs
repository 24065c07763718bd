//! Opens pinned maps with their types. The agent and `debug` go through here.

use std::{io, path::Path};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray, SkStorage, lpm_trie::LpmTrie},
};
use proxy_common::{
    Family, V4, V6,
    layout::{
        affinity::{Affinity, AffinityKey},
        answers::Line,
        backend::{Alive, Backend},
        backend_id::BackendId,
        cidr::ServiceCidrs,
        config::StoredSettings,
        counter::Counter,
        destination::{Destination, RouteHint},
        device::Device,
        flow::{Flow, FlowKey},
        frontend::{Frontend, FrontendKey},
        name::ServiceName,
        outbound::Outbound,
        set::Set,
        socket::{ConnectedPeer, SharedKey, SharedPeer, UdpPeers},
        source::Source,
    },
};

use super::{address::UserFamily, array::MmapArray, pins::Pins, raw_hash::RawHash};

/// A hash map, LRU or not.
pub type Hash<K, V> = HashMap<MapData, K, V>;

/// What sockets keep.
pub type SocketStorage<V> = SkStorage<MapData, V>;

/// A map of prefixes.
pub type Trie<K, V> = LpmTrie<MapData, K, V>;

/// A family whose layouts aya can copy; both are.
pub trait MapFamily: UserFamily<Addr: Pod + Send, Pad: Send, SlotPad: Send> {
    /// Suffix of its maps' names.
    const SUFFIX: &'static str;

    /// `frontends`.
    fn frontends(pins: &Pins) -> Result<Hash<FrontendKey<Self>, Frontend<Self>>>;
    /// `backends`.
    fn backends(pins: &Pins) -> Result<Array<MapData, Backend<Self>>>;
    /// `flows`.
    fn flows(pins: &Pins) -> Result<Hash<FlowKey<Self>, Flow<Self>>>;
    /// `pending`.
    fn pending(pins: &Pins) -> Result<Hash<FlowKey<Self>, Flow<Self>>>;
    /// `outbound`.
    fn outbound(pins: &Pins) -> Result<Hash<FlowKey<Self>, Outbound>>;
    /// `snat_sources`.
    fn snat_sources(pins: &Pins) -> Result<Array<MapData, <Self as Family>::Addr>>;
    /// `sockets`.
    fn sockets(pins: &Pins) -> Result<Hash<SharedKey, SharedPeer<Self>>>;
    /// `peers`.
    fn peers(pins: &Pins) -> Result<SocketStorage<ConnectedPeer<Self>>>;
    /// `udp_peers`.
    fn udp_peers(pins: &Pins) -> Result<SocketStorage<UdpPeers<Self>>>;
    /// `node_addrs`.
    fn node_addrs(pins: &Pins) -> Result<Hash<<Self as Family>::Addr, u32>>;
    /// `affinity`.
    fn affinity(pins: &Pins) -> Result<Hash<AffinityKey<Self>, Affinity<Self>>>;
    /// `sources`.
    fn sources(pins: &Pins) -> Result<Trie<Source<Self>, u32>>;
    /// `destinations`.
    fn destinations(pins: &Pins) -> Result<Trie<Destination<Self>, RouteHint>>;
    /// `service_cidrs`.
    fn service_cidrs(pins: &Pins) -> Result<Array<MapData, ServiceCidrs<Self>>>;
    /// `netns`.
    fn netns(pins: &Pins) -> Result<Hash<u64, <Self as Family>::Addr>>;
}

macro_rules! map_family {
    ($family:ident, $suffix:literal) => {
        impl MapFamily for $family {
            const SUFFIX: &'static str = $suffix;

            fn frontends(pins: &Pins) -> Result<Hash<FrontendKey<Self>, Frontend<Self>>> {
                hash(pins, concat!("frontends_", $suffix))
            }
            fn backends(pins: &Pins) -> Result<Array<MapData, Backend<Self>>> {
                array(pins, concat!("backends_", $suffix))
            }
            fn flows(pins: &Pins) -> Result<Hash<FlowKey<Self>, Flow<Self>>> {
                lru(pins, concat!("flows_", $suffix))
            }
            fn pending(pins: &Pins) -> Result<Hash<FlowKey<Self>, Flow<Self>>> {
                lru(pins, concat!("pending_", $suffix))
            }
            fn outbound(pins: &Pins) -> Result<Hash<FlowKey<Self>, Outbound>> {
                lru(pins, concat!("outbound_", $suffix))
            }
            fn snat_sources(pins: &Pins) -> Result<Array<MapData, <Self as Family>::Addr>> {
                array(pins, concat!("snat_sources_", $suffix))
            }
            fn sockets(pins: &Pins) -> Result<Hash<SharedKey, SharedPeer<Self>>> {
                lru(pins, concat!("sockets_", $suffix))
            }
            fn peers(pins: &Pins) -> Result<SocketStorage<ConnectedPeer<Self>>> {
                Ok(Map::SkStorage(open(pins, concat!("peers_", $suffix))?).try_into()?)
            }
            fn udp_peers(pins: &Pins) -> Result<SocketStorage<UdpPeers<Self>>> {
                Ok(Map::SkStorage(open(pins, concat!("udp_peers_", $suffix))?).try_into()?)
            }
            fn node_addrs(pins: &Pins) -> Result<Hash<<Self as Family>::Addr, u32>> {
                hash(pins, concat!("node_addrs_", $suffix))
            }
            fn affinity(pins: &Pins) -> Result<Hash<AffinityKey<Self>, Affinity<Self>>> {
                lru(pins, concat!("affinity_", $suffix))
            }
            fn sources(pins: &Pins) -> Result<Trie<Source<Self>, u32>> {
                Ok(Map::LpmTrie(open(pins, concat!("sources_", $suffix))?).try_into()?)
            }
            fn destinations(pins: &Pins) -> Result<Trie<Destination<Self>, RouteHint>> {
                Ok(Map::LpmTrie(open(pins, concat!("destinations_", $suffix))?).try_into()?)
            }
            fn service_cidrs(pins: &Pins) -> Result<Array<MapData, ServiceCidrs<Self>>> {
                array(pins, concat!("service_cidrs_", $suffix))
            }
            fn netns(pins: &Pins) -> Result<Hash<u64, <Self as Family>::Addr>> {
                hash(pins, concat!("netns_", $suffix))
            }
        }
    };
}

map_family!(V4, "v4");
map_family!(V6, "v6");

/// `names`.
pub fn names(pins: &Pins) -> Result<Hash<u32, ServiceName>> {
    hash(pins, "names")
}

/// `devices`.
pub fn devices(pins: &Pins) -> Result<Hash<u32, Device>> {
    hash(pins, "devices")
}

/// `packet_pods`, to look at.
pub fn packet_pods(pins: &Pins) -> Result<Hash<u64, u32>> {
    hash(pins, "packet_pods")
}

/// `sets`, to look at.
pub fn sets(pins: &Pins) -> Result<Array<MapData, Set>> {
    array(pins, "sets")
}

/// `alive`, to look at.
pub fn alive(pins: &Pins) -> Result<Array<MapData, Alive>> {
    array(pins, "alive")
}

/// `vip_filter`, to look at.
pub fn vip_filter(pins: &Pins) -> Result<Array<MapData, u64>> {
    array(pins, "vip_filter")
}

/// `settings`, to look at.
pub fn settings(pins: &Pins) -> Result<StoredSettings> {
    let map: Array<MapData, StoredSettings> = array(pins, "settings")?;
    Ok(map.get(&0, 0)?)
}

/// `settings`, to write.
pub(super) fn write_settings(pins: &Pins, settings: StoredSettings) -> Result<()> {
    let mut map: Array<MapData, StoredSettings> = array(pins, "settings")?;
    map.set(0, settings, 0).context("cannot write the map `settings`")
}

/// Opens every pinned map that programs and agent share, so that a layout that is not ours shows before it is used: aya
/// takes a pinned map as it is.
pub(super) fn check_layouts(pins: &Pins) -> Result<()> {
    // Those of a group that no release had yet are not there.
    fn absent_or<T>(opened: Result<T>) -> Result<()> {
        let is_absent = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        match opened {
            Err(error) if error.chain().any(is_absent) => Ok(()),
            opened => opened.map(drop),
        }
    }
    fn family<F: MapFamily>(pins: &Pins) -> Result<()> {
        absent_or(F::frontends(pins))?;
        absent_or(F::backends(pins))?;
        absent_or(F::flows(pins))?;
        absent_or(F::pending(pins))?;
        absent_or(F::outbound(pins))?;
        absent_or(F::snat_sources(pins))?;
        absent_or(F::sockets(pins))?;
        absent_or(F::peers(pins))?;
        absent_or(F::udp_peers(pins))?;
        absent_or(F::node_addrs(pins))?;
        absent_or(F::affinity(pins))?;
        absent_or(F::sources(pins))?;
        absent_or(F::destinations(pins))?;
        absent_or(F::service_cidrs(pins))?;
        absent_or(F::netns(pins))
    }
    let check = || -> Result<()> {
        family::<V4>(pins)?;
        family::<V6>(pins)?;
        absent_or(names(pins))?;
        absent_or(array::<BackendId>(pins, "backend_ids"))?;
        absent_or(devices(pins))?;
        absent_or(sets(pins))?;
        absent_or(alive(pins))?;
        absent_or(vip_filter(pins))?;
        absent_or(array::<Line>(pins, "answers"))?;
        absent_or(packet_pods(pins))?;
        absent_or(settings(pins))
    };
    check().context(
        "the pinned maps are not of this version: `proxy-agent cleanup` removes them (services stop until the agent runs \
         again), or name another directory with --bpffs",
    )
}

/// What the programs counted, summed over CPUs.
pub fn counters(pins: &Pins) -> Result<Vec<(Counter, u64)>> {
    let map: PerCpuArray<MapData, u64> = Map::PerCpuArray(open(pins, "counters")?).try_into()?;
    let sum = |counter: &Counter| {
        let values = map.get(&(*counter as u32), 0)?;
        Ok((*counter, values.iter().sum()))
    };
    Counter::ALL.iter().map(sum).collect()
}

/// How many entries a pinned map has room for; none if there is no such map.
pub fn capacity(pins: &Pins, map: &str) -> Option<u32> {
    Some(MapInfo::from_pin(pins.map(map)).ok()?.max_entries())
}

/// Maps an array for writing.
pub(super) fn mmap<T: Pod>(pins: &Pins, name: &str) -> Result<MmapArray<T>> {
    MmapArray::map(&open(pins, name)?).with_context(|| format!("cannot map the map `{name}` into memory"))
}

/// A hash that the agent fills.
pub(super) fn table<K: Pod, V: Pod>(pins: &Pins, name: &str) -> Result<RawHash<K, V>> {
    RawHash::open_pinned(&pins.map(name)).map_err(|error| explain(error.into(), &pins.map(name)))
}

fn open(pins: &Pins, name: &str) -> Result<MapData> {
    MapData::from_pin(pins.map(name)).map_err(|error| explain(error.into(), &pins.map(name)))
}

fn explain(error: anyhow::Error, path: &Path) -> anyhow::Error {
    let error = error.context(format!("cannot open the map {}", path.display()));
    if path.exists() {
        error
    } else {
        error.context("no agent has run with these pins (name the directory with --bpffs)")
    }
}

fn hash<K: Pod, V: Pod>(pins: &Pins, name: &str) -> Result<Hash<K, V>> {
    Ok(Map::HashMap(open(pins, name)?).try_into()?)
}

fn lru<K: Pod, V: Pod>(pins: &Pins, name: &str) -> Result<Hash<K, V>> {
    Ok(Map::LruHashMap(open(pins, name)?).try_into()?)
}

fn array<V: Pod>(pins: &Pins, name: &str) -> Result<Array<MapData, V>> {
    Ok(Map::Array(open(pins, name)?).try_into()?)
}
