//! The maps. `proxy_common::layout::maps::table` defines each: key, value, entries and flags come from there.
//! This file adds the name, as a literal because aya requires one, and aya's type; a test of the agent compares
//! the maps of the object with the table.

use core::ptr::NonNull;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, lpm_trie::Key},
    macros::btf_map,
};
use proxy_common::{
    V4, V6,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::Backend,
        by_use::SLOTS,
        cidr::ServiceCidrs,
        destination::{Destination, RouteHint},
        device::Device,
        flow::{Flow, FlowDraft, FlowKey},
        fragment::{FragmentKey, FragmentPorts, QueuedFragment, QueuedFragmentKey},
        frontend::{Frontend, FrontendKey},
        id::Id,
        maps::{self, DeclaredMap, table},
        next_hop::NextHop,
        outbound::Outbound,
        socket::{ConnectedPeer, PeerCell, PeerCellRef, SharedKey, SharedPeer, UdpPeers},
        source_range::SourceRange,
    },
    packet::Parse,
};

use crate::{
    by_use,
    route::{fib_cache::CachedRoute, hop_route::HopRoute},
    scratch::Scratch,
};

const _: () = assert!(maps::MMAPABLE == BPF_F_MMAPABLE && maps::ON_DEMAND == BPF_F_NO_PREALLOC);

/// `keyed!(HashMap, table::ServiceNames)`: aya's type of that map of the table.
macro_rules! keyed {
    ($aya:ident, $map:ty) => {
        $aya<<$map as DeclaredMap>::Key, <$map as DeclaredMap>::Value, { <$map as DeclaredMap>::ENTRIES }, { <$map as DeclaredMap>::FLAGS }>
    };
}

/// The same for a map by index.
macro_rules! indexed {
    ($aya:ident, $map:ty) => {
        $aya<<$map as DeclaredMap>::Value, { <$map as DeclaredMap>::ENTRIES }, { <$map as DeclaredMap>::FLAGS }>
    };
}
pub(crate) use indexed;

/// The same for a map that grows by use.
macro_rules! by_use {
    ($map:ty) => {
        ArrayOfMaps<keyed!(LruHashMap, $map), SLOTS>
    };
}

#[btf_map(name = "backend_sets")]
pub(crate) static BACKEND_SETS: indexed!(Array, table::BackendSets) = Array::new();
#[btf_map(name = "backend_states")]
pub(crate) static BACKEND_STATES: indexed!(Array, table::BackendStates) = Array::new();
#[btf_map(name = "vip_filter")]
pub(crate) static VIP_FILTER: indexed!(Array, table::VipFilter) = Array::new();
#[btf_map(name = "reply_filter")]
pub(crate) static REPLY_FILTER: indexed!(Array, table::ReplyFilter) = Array::new();
#[btf_map(name = "interfaces")]
pub(crate) static INTERFACES: keyed!(HashMap, table::Interfaces) = HashMap::new();
#[btf_map(name = "counters")]
pub(crate) static COUNTERS: indexed!(PerCpuArray, table::Counters) = PerCpuArray::new();
#[btf_map(name = "settings")]
pub(crate) static SETTINGS: indexed!(Array, table::Settings) = Array::new();
#[btf_map(name = "service_names")]
pub(crate) static SERVICE_NAMES: keyed!(HashMap, table::ServiceNames) = HashMap::new();
#[btf_map(name = "backend_ids")]
pub(crate) static BACKEND_IDS: indexed!(Array, table::BackendIds) = Array::new();
#[btf_map(name = "packet_pods")]
pub(crate) static PACKET_PODS: keyed!(HashMap, table::PacketPods) = HashMap::new();
/// See [`crate::reject`].
#[btf_map(name = "rejects")]
pub(crate) static REJECTS: indexed!(PerCpuArray, table::Rejects) = PerCpuArray::new();
/// Too large for the stack.
#[btf_map(name = "frag_buffer")]
pub(crate) static FRAG_BUFFER: indexed!(PerCpuArray, table::FragBuffer) = PerCpuArray::new();

macro_rules! family_maps {
    ($family:ident, $frontends:ident $frontends_name:literal, $backends:ident $backends_name:literal,
     $flows:ident $flows_name:literal, $sockets:ident $sockets_name:literal, $cells:ident $cells_name:literal, $connected:ident $connected_name:literal,
     $udp_peers:ident $udp_peers_name:literal,
     $addrs:ident $addrs_name:literal, $draft:ident $draft_name:literal, $affinity:ident $affinity_name:literal,
     $source_ranges:ident $source_ranges_name:literal, $cidrs:ident $cidrs_name:literal, $netns:ident $netns_name:literal,
     $fragments:ident $fragments_name:literal, $scratch:ident $scratch_name:literal,
     $queued:ident $frag_queue_name:literal, $routes:ident $fib_cache_name:literal, $pending:ident $pending_name:literal,
     $outbound:ident $outbound_name:literal, $snat:ident $snat_name:literal, $destinations:ident $destinations_name:literal,
     $next_hops:ident $next_hops_name:literal, $hop_routes:ident $hop_routes_name:literal) => {
        #[btf_map(name = $frontends_name)]
        static $frontends: keyed!(HashMap, table::Frontends<$family>) = HashMap::new();
        #[btf_map(name = $backends_name)]
        static $backends: indexed!(Array, table::Backends<$family>) = Array::new();
        #[btf_map(name = $flows_name)]
        static $flows: by_use!(table::Flows<$family>) = ArrayOfMaps::new();
        #[btf_map(name = $pending_name)]
        static $pending: by_use!(table::Pending<$family>) = ArrayOfMaps::new();
        #[btf_map(name = $outbound_name)]
        static $outbound: keyed!(LruHashMap, table::Outbound<$family>) = LruHashMap::new();
        #[btf_map(name = $snat_name)]
        static $snat: indexed!(Array, table::SnatSources<$family>) = Array::new();
        #[btf_map(name = $sockets_name)]
        static $sockets: by_use!(table::Sockets<$family>) = ArrayOfMaps::new();
        #[btf_map(name = $cells_name)]
        static $cells: indexed!(Array, table::PeerCells<$family>) = Array::new();
        #[btf_map(name = $connected_name)]
        static $connected: SkStorage<<table::Connected<$family> as DeclaredMap>::Value> = SkStorage::new();
        #[btf_map(name = $udp_peers_name)]
        static $udp_peers: SkStorage<<table::UdpPeers<$family> as DeclaredMap>::Value> = SkStorage::new();
        #[btf_map(name = $addrs_name)]
        static $addrs: keyed!(HashMap, table::NodeAddrs<$family>) = HashMap::new();
        #[btf_map(name = $affinity_name)]
        static $affinity: by_use!(table::Affinity<$family>) = ArrayOfMaps::new();
        #[btf_map(name = $source_ranges_name)]
        static $source_ranges: keyed!(LpmTrie, table::SourceRanges<$family>) = LpmTrie::new();
        #[btf_map(name = $destinations_name)]
        static $destinations: keyed!(LpmTrie, table::Destinations<$family>) = LpmTrie::new();
        #[btf_map(name = $next_hops_name)]
        static $next_hops: indexed!(Array, table::NextHops<$family>) = Array::new();
        #[btf_map(name = $cidrs_name)]
        static $cidrs: indexed!(Array, table::ServiceCidrs<$family>) = Array::new();
        #[btf_map(name = $netns_name)]
        static $netns: keyed!(HashMap, table::Netns<$family>) = HashMap::new();
        #[btf_map(name = $fragments_name)]
        static $fragments: keyed!(LruHashMap, table::Fragments<$family>) = LruHashMap::new();
        #[btf_map(name = $frag_queue_name)]
        static $queued: keyed!(LruHashMap, table::FragQueue<$family>) = LruHashMap::new();
        // Programs that use it run with bottom halves off, so that no program interrupts another on its CPU.
        #[btf_map(name = $draft_name)]
        static $draft: indexed!(PerCpuArray, table::FlowDraft<$family>) = PerCpuArray::new();
        #[btf_map(name = $scratch_name)]
        static $scratch: PerCpuArray<
            Scratch<$family>,
            { <table::Scratch<$family> as DeclaredMap>::ENTRIES },
        > = PerCpuArray::new();
        #[btf_map(name = $fib_cache_name)]
        static $routes: PerCpuArray<
            CachedRoute<$family>,
            { <table::FibCache<$family> as DeclaredMap>::ENTRIES },
        > = PerCpuArray::new();

        #[btf_map(name = $hop_routes_name)]
        static $hop_routes: Array<
            HopRoute<$family>,
            { <table::HopRoutes<$family> as DeclaredMap>::ENTRIES },
        > = Array::new();

        impl FamilyMaps for $family {
            #[inline(always)]
            fn frontend(key: &FrontendKey<Self>) -> Option<*const Frontend<Self>> {
                $frontends.get_ptr(key)
            }
            #[inline(always)]
            fn backend(slot: u32) -> Option<*const Backend<Self>> {
                $backends.get_ptr(slot)
            }
            #[inline(always)]
            fn flow(key: &FlowKey<Self>) -> Option<*mut Flow<Self>> {
                by_use::find(&$flows, key)
            }
            #[inline(always)]
            fn put_flow(key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> Result<(), i32> {
                by_use::insert::<table::Flows<Self>, _, _>(&$flows, key, flow, flags)
            }
            #[inline(always)]
            fn pending(key: &FlowKey<Self>) -> Option<*mut Flow<Self>> {
                by_use::find(&$pending, key)
            }
            #[inline(always)]
            fn put_pending(key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> Result<(), i32> {
                by_use::insert::<table::Pending<Self>, _, _>(&$pending, key, flow, flags)
            }
            #[inline(always)]
            fn remove_pending(key: &FlowKey<Self>) {
                by_use::remove(&$pending, key);
            }
            #[inline(always)]
            fn outbound(key: &FlowKey<Self>) -> Option<*const Outbound> {
                $outbound.get_ptr(key)
            }
            #[inline(always)]
            fn put_outbound(key: &FlowKey<Self>, outbound: &Outbound) {
                // If the map is full, a reply may be taken for a request.
                let _ = $outbound.insert(key, outbound, 0);
            }
            #[inline(always)]
            fn snat_source(index: u32) -> Option<*const Self::Addr> {
                $snat.get_ptr(index)
            }
            #[inline(always)]
            fn remove_flow(key: &FlowKey<Self>) {
                by_use::remove(&$flows, key);
            }
            #[inline(always)]
            fn fragment(key: &FragmentKey<Self>) -> Option<*const FragmentPorts> {
                $fragments.get_ptr(key)
            }
            #[inline(always)]
            fn put_fragment(key: &FragmentKey<Self>, ports: &FragmentPorts) {
                // If the map is full, the packet's other fragments are left alone.
                let _ = $fragments.insert(key, ports, 0);
            }
            #[inline(always)]
            fn queued(key: &QueuedFragmentKey<Self>) -> Option<*const QueuedFragment> {
                $queued.get_ptr(key)
            }
            #[inline(always)]
            fn enqueue(key: &QueuedFragmentKey<Self>, fragment: &QueuedFragment) -> bool {
                $queued.insert(key, fragment, BPF_NOEXIST as u64).is_ok()
            }
            #[inline(always)]
            fn dequeue(key: &QueuedFragmentKey<Self>) {
                // A missing entry counts as removed.
                let _ = $queued.remove(key);
            }
            #[inline(always)]
            fn draft() -> Option<*mut FlowDraft<Self>> {
                $draft.get_ptr_mut(0)
            }
            #[inline(always)]
            fn scratch() -> Option<*mut Scratch<Self>> {
                $scratch.get_ptr_mut(0)
            }
            #[inline(always)]
            fn cached_route(slot: u32) -> Option<*mut CachedRoute<Self>> {
                $routes.get_ptr_mut(slot)
            }
            #[inline(always)]
            fn hop_route(slot: u32) -> Option<*mut HopRoute<Self>> {
                $hop_routes.get_ptr_mut(slot)
            }
            #[inline(always)]
            fn shared_peer(key: &SharedKey) -> Option<*const SharedPeer<Self>> {
                by_use::find(&$sockets, key).map(<*mut _>::cast_const)
            }
            #[inline(always)]
            fn set_shared_peer(key: &SharedKey, peer: &SharedPeer<Self>) -> bool {
                by_use::insert::<table::Sockets<Self>, _, _>(&$sockets, key, peer, 0).is_ok()
            }
            #[inline(always)]
            fn peer_cell(cookie: u64) -> Option<PeerCellRef<'static, Self>> {
                let cell = NonNull::new($cells.get_ptr_mut(PeerCell::<Self>::index(cookie))?)?;
                // SAFETY: an element of an array, which stays; only `PeerCellRef` touches it.
                Some(unsafe { PeerCellRef::new(cell) })
            }
            #[inline(always)]
            fn connected() -> &'static SkStorage<ConnectedPeer<Self>> {
                &$connected
            }
            #[inline(always)]
            fn udp_peers() -> &'static SkStorage<UdpPeers<Self>> {
                &$udp_peers
            }
            #[inline(always)]
            fn node_address(addr: &Self::Addr) -> u32 {
                // SAFETY: a word, read at once; the agent replaces whole elements.
                unsafe { $addrs.get(addr) }.copied().unwrap_or(0)
            }
            #[inline(always)]
            fn affinity(key: &AffinityKey<Self>) -> Option<*mut Affinity<Self>> {
                by_use::find(&$affinity, key)
            }
            #[inline(always)]
            fn put_affinity(key: &AffinityKey<Self>, affinity: &Affinity<Self>) {
                // If the map is full, the client gets a new choice next time.
                let _ = by_use::insert::<table::Affinity<Self>, _, _>(&$affinity, key, affinity, 0);
            }
            #[inline(always)]
            fn has_source_range(service: Id, addr: &Self::Addr) -> bool {
                let whole = 8 * size_of::<SourceRange<Self>>() as u32;
                $source_ranges.get(&Key::new(whole, SourceRange { service, addr: *addr })).is_some()
            }
            #[inline(always)]
            fn hint(dst: &Self::Addr) -> Option<&'static RouteHint> {
                let whole = 8 * size_of::<Destination<Self>>() as u32;
                $destinations.get(&Key::new(whole, Destination { addr: *dst }))
            }
            #[inline(always)]
            fn next_hop_slot(index: u32) -> Option<*mut NextHop<Self>> {
                $next_hops.get_ptr_mut(index)
            }
            #[inline(always)]
            fn service_cidrs() -> Option<&'static ServiceCidrs<Self>> {
                $cidrs.get(0)
            }
            #[inline(always)]
            fn netns(cookie: u64) -> Option<*const Self::Addr> {
                $netns.get_ptr(cookie)
            }
        }
    };
}

family_maps!(V4, FRONTENDS_V4 "frontends_v4", BACKENDS_V4 "backends_v4", FLOWS_V4 "flows_v4",
    SOCKETS_V4 "sockets_v4", PEER_CELLS_V4 "peer_cells_v4", CONNECTED_V4 "connected_v4", UDP_PEERS_V4 "udp_peers_v4", NODE_ADDRS_V4 "node_addrs_v4", FLOW_DRAFT_V4 "flow_draft_v4",
    AFFINITY_V4 "affinity_v4", SOURCE_RANGES_V4 "source_ranges_v4", SERVICE_CIDRS_V4 "service_cidrs_v4", NETNS_V4 "netns_v4",
    FRAGMENTS_V4 "fragments_v4", SCRATCH_V4 "scratch_v4", FRAG_QUEUE_V4 "frag_queue_v4", FIB_CACHE_V4 "fib_cache_v4", PENDING_V4 "pending_v4",
    OUTBOUND_V4 "outbound_v4", SNAT_SOURCES_V4 "snat_sources_v4", DESTINATIONS_V4 "destinations_v4",
    NEXT_HOPS_V4 "next_hops_v4", HOP_ROUTES_V4 "hop_routes_v4");
family_maps!(V6, FRONTENDS_V6 "frontends_v6", BACKENDS_V6 "backends_v6", FLOWS_V6 "flows_v6",
    SOCKETS_V6 "sockets_v6", PEER_CELLS_V6 "peer_cells_v6", CONNECTED_V6 "connected_v6", UDP_PEERS_V6 "udp_peers_v6", NODE_ADDRS_V6 "node_addrs_v6", FLOW_DRAFT_V6 "flow_draft_v6",
    AFFINITY_V6 "affinity_v6", SOURCE_RANGES_V6 "source_ranges_v6", SERVICE_CIDRS_V6 "service_cidrs_v6", NETNS_V6 "netns_v6",
    FRAGMENTS_V6 "fragments_v6", SCRATCH_V6 "scratch_v6", FRAG_QUEUE_V6 "frag_queue_v6", FIB_CACHE_V6 "fib_cache_v6", PENDING_V6 "pending_v6",
    OUTBOUND_V6 "outbound_v6", SNAT_SOURCES_V6 "snat_sources_v6", DESTINATIONS_V6 "destinations_v6",
    NEXT_HOPS_V6 "next_hops_v6", HOP_ROUTES_V6 "hop_routes_v6");

/// The agent's entry of an interface.
#[inline(always)]
pub(crate) fn interface(ifindex: u32) -> Option<&'static Device> {
    // SAFETY: the agent replaces whole elements; a torn one would need two changes at once.
    unsafe { INTERFACES.get(ifindex) }
}

/// The maps that each family has separately.
pub(crate) trait FamilyMaps: Parse {
    fn frontend(key: &FrontendKey<Self>) -> Option<*const Frontend<Self>>;
    fn backend(slot: u32) -> Option<*const Backend<Self>>;
    fn flow(key: &FlowKey<Self>) -> Option<*mut Flow<Self>>;
    fn put_flow(key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> Result<(), i32>;
    fn remove_flow(key: &FlowKey<Self>);
    fn pending(key: &FlowKey<Self>) -> Option<*mut Flow<Self>>;
    fn put_pending(key: &FlowKey<Self>, flow: &Flow<Self>, flags: u64) -> Result<(), i32>;
    fn remove_pending(key: &FlowKey<Self>);
    fn outbound(key: &FlowKey<Self>) -> Option<*const Outbound>;
    fn put_outbound(key: &FlowKey<Self>, outbound: &Outbound);
    fn snat_source(index: u32) -> Option<*const Self::Addr>;
    fn fragment(key: &FragmentKey<Self>) -> Option<*const FragmentPorts>;
    fn put_fragment(key: &FragmentKey<Self>, ports: &FragmentPorts);
    fn queued(key: &QueuedFragmentKey<Self>) -> Option<*const QueuedFragment>;
    fn enqueue(key: &QueuedFragmentKey<Self>, fragment: &QueuedFragment) -> bool;
    fn dequeue(key: &QueuedFragmentKey<Self>);
    fn draft() -> Option<*mut FlowDraft<Self>>;
    fn scratch() -> Option<*mut Scratch<Self>>;
    fn cached_route(slot: u32) -> Option<*mut CachedRoute<Self>>;
    fn hop_route(slot: u32) -> Option<*mut HopRoute<Self>>;
    fn shared_peer(key: &SharedKey) -> Option<*const SharedPeer<Self>>;
    fn set_shared_peer(key: &SharedKey, peer: &SharedPeer<Self>) -> bool;
    fn peer_cell(cookie: u64) -> Option<PeerCellRef<'static, Self>>;
    fn connected() -> &'static SkStorage<ConnectedPeer<Self>>;
    fn udp_peers() -> &'static SkStorage<UdpPeers<Self>>;
    fn node_address(addr: &Self::Addr) -> u32;
    fn affinity(key: &AffinityKey<Self>) -> Option<*mut Affinity<Self>>;
    fn put_affinity(key: &AffinityKey<Self>, affinity: &Affinity<Self>);
    fn has_source_range(service: Id, addr: &Self::Addr) -> bool;
    fn hint(dst: &Self::Addr) -> Option<&'static RouteHint>;
    fn next_hop_slot(index: u32) -> Option<*mut NextHop<Self>>;
    fn service_cidrs() -> Option<&'static ServiceCidrs<Self>>;
    fn netns(cookie: u64) -> Option<*const Self::Addr>;
}
