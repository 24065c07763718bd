//! Opens pinned maps with their types. The agent and `debug` go through here.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, PerCpuArray, SkStorage, lpm_trie::LpmTrie},
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

use super::{address::UserFamily, array::MmapArray, pins::Pins, sys::RawHash};

/// A hash map, LRU or not.
pub type Hash<K, V> = HashMap<MapData, K, V>;

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
    fn peers(pins: &Pins) -> Result<SkStorage<MapData, ConnectedPeer<Self>>>;
    /// `udp_peers`.
    fn udp_peers(pins: &Pins) -> Result<SkStorage<MapData, UdpPeers<Self>>>;
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
            fn peers(pins: &Pins) -> Result<SkStorage<MapData, ConnectedPeer<Self>>> {
                Ok(Map::SkStorage(open(pins, concat!("peers_", $suffix))?).try_into()?)
            }
            fn udp_peers(pins: &Pins) -> Result<SkStorage<MapData, UdpPeers<Self>>> {
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
    fn family<F: MapFamily>(pins: &Pins) -> Result<()> {
        let check = |name: &str, open: &dyn Fn() -> Result<()>| {
            if_pinned(pins, &format!("{name}_{}", F::SUFFIX), open)
        };
        check("frontends", &|| F::frontends(pins).map(drop))?;
        check("backends", &|| F::backends(pins).map(drop))?;
        check("flows", &|| F::flows(pins).map(drop))?;
        check("pending", &|| F::pending(pins).map(drop))?;
        check("outbound", &|| F::outbound(pins).map(drop))?;
        check("snat_sources", &|| F::snat_sources(pins).map(drop))?;
        check("sockets", &|| F::sockets(pins).map(drop))?;
        check("peers", &|| F::peers(pins).map(drop))?;
        check("udp_peers", &|| F::udp_peers(pins).map(drop))?;
        check("node_addrs", &|| F::node_addrs(pins).map(drop))?;
        check("affinity", &|| F::affinity(pins).map(drop))?;
        check("sources", &|| F::sources(pins).map(drop))?;
        check("destinations", &|| F::destinations(pins).map(drop))?;
        check("service_cidrs", &|| F::service_cidrs(pins).map(drop))?;
        check("netns", &|| F::netns(pins).map(drop))
    }
    // Those of a group that no release had yet are not there.
    fn if_pinned(pins: &Pins, name: &str, open: &dyn Fn() -> Result<()>) -> Result<()> {
        if pins.map(name).exists() { open() } else { Ok(()) }
    }
    let check = || -> Result<()> {
        family::<V4>(pins)?;
        family::<V6>(pins)?;
        if_pinned(pins, "names", &|| names(pins).map(drop))?;
        if_pinned(pins, "backend_ids", &|| array::<BackendId>(pins, "backend_ids").map(drop))?;
        if_pinned(pins, "devices", &|| devices(pins).map(drop))?;
        if_pinned(pins, "sets", &|| sets(pins).map(drop))?;
        if_pinned(pins, "alive", &|| alive(pins).map(drop))?;
        if_pinned(pins, "vip_filter", &|| vip_filter(pins).map(drop))?;
        if_pinned(pins, "answers", &|| array::<Line>(pins, "answers").map(drop))?;
        if_pinned(pins, "packet_pods", &|| packet_pods(pins).map(drop))?;
        if_pinned(pins, "settings", &|| settings(pins).map(drop))
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
