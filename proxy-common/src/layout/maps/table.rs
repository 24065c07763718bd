//! The list of all maps.
//!
//! A row is `Type = "name": Kind(Key => Value) { ... }`, with `key -> value` in words above it and the fields of [`Definition`] behind it. A row of
//! `of_each_family!` makes two maps, `name_v4` and `name_v6`, and a type for each `F`.

use core::marker::PhantomData;

use super::{ByUse, Capacity, DeclaredMap, Definition, Kind, MMAPABLE, Most, ON_DEMAND, OfPrograms, Size};
use crate::{
    Family, V4, V6,
    layout::{
        affinity, backend, backend_id, by_use, cidr, config, counter::Counter, destination, device, event,
        filter, flow, fragment, frontend, group::Group, name, next_hop, outbound, reply_filter, set, socket,
        source_range,
    },
};

/// An address of a family.
type Addr<F> = <F as Family>::Addr;

macro_rules! shared {
    ($($(#[doc = $doc:literal])+ $map:ident = $name:literal: $kind:ident($key:ty => $value:ty) { $($field:tt)+ })*) => {
        $(
            #[doc = concat!("`", $name, "`.")]
            #[doc = ""]
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug)]
            pub struct $map;

            impl DeclaredMap for $map {
                type Key = $key;
                type Value = $value;
                const DEFINITION: Definition = Definition {
                    name: $name,
                    family: None,
                    kind: Kind::$kind,
                    key_size: Kind::$kind.key_size(size_of::<$key>()),
                    value_size: size_of::<$value>() as u32,
                    doc: concat!($($doc),+).trim_ascii(),
                    $($field)+
                };
            }
        )*

        /// Maps that both families share.
        pub const SHARED: &[Definition] = &[$($map::DEFINITION),*];
    };
}

macro_rules! of_each_family {
    ($($(#[doc = $doc:literal])+ $map:ident = $name:literal: $kind:ident($key:ty => $value:ty) { $($field:tt)+ })*) => {
        $(
            #[doc = concat!("`", $name, "_v4`, `", $name, "_v6`.")]
            #[doc = ""]
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug)]
            pub struct $map<F>(PhantomData<F>);

            impl<F: Family> DeclaredMap for $map<F> {
                type Key = $key;
                type Value = $value;
                const DEFINITION: Definition = Definition {
                    name: [concat!($name, "_v4"), concat!($name, "_v6")][F::INDEX],
                    family: Some(F::INDEX),
                    kind: Kind::$kind,
                    key_size: Kind::$kind.key_size(size_of::<$key>()),
                    value_size: size_of::<$value>() as u32,
                    doc: concat!($($doc),+).trim_ascii(),
                    $($field)+
                };
            }
        )*

        /// Maps of IPv4.
        pub const OF_V4: &[Definition] = &[$($map::<V4>::DEFINITION),*];
        /// Maps of IPv6.
        pub const OF_V6: &[Definition] = &[$($map::<V6>::DEFINITION),*];
    };
}

shared! {
    /// element -> 64 bits: may an address, port and protocol be a frontend?
    VipFilter = "vip_filter": Array(u32 => u64) {
        // With the flows: their packets do not get past a bit that is missing.
        entries: filter::ELEMENTS, flags: MMAPABLE, size: Size::InObject, group: Group::Flows,
        written_by: "agent", read_by: "all programs",
    }

    /// reply filter: cache line -> 64 bytes. Behind the lines the epoch.
    ReplyFilter = "reply_filter": Array(u32 => reply_filter::CacheLine) {
        entries: reply_filter::ELEMENTS, flags: MMAPABLE, size: Size::InObject, group: Group::Flows,
        written_by: "programs that open flows, agent", read_by: "tc programs, on egress",
    }

    /// service index * 8 + policy -> one word: first slot, count, kind of the backend set. Behind the policies the affinity timeout.
    BackendSets = "backend_sets": Array(u32 => set::BackendSet) {
        entries: 2, flags: MMAPABLE, group: Group::Services,
        size: Size::Grows(Capacity::ServicePorts, |ports| ports * set::SetPolicy::STRIDE),
        written_by: "agent", read_by: "programs, for new flows and sockets",
    }

    /// service id -> name, protocol, IP version
    ServiceNames = "service_names": Hash(u32 => name::ServiceName) {
        entries: 1, flags: ON_DEMAND, group: Group::Ids,
        size: Size::Grows(Capacity::ServicePorts, |ports| ports),
        written_by: "agent", read_by: "agent, `debug`",
    }

    /// backend index / 4 -> for each of four backends a byte of generation and a byte of the backend sets it is in
    BackendStates = "backend_states": Array(u32 => backend::BackendState) {
        entries: 1, flags: MMAPABLE, group: Group::Services,
        size: Size::Grows(Capacity::Backends, |backends| backends / backend::BackendState::PER_ELEMENT),
        written_by: "agent", read_by: "programs: UDP and SYN of known flows; sockets; session affinity",
    }

    /// backend index -> address, port, service id, backend id
    BackendIds = "backend_ids": Array(u32 => backend_id::BackendId) {
        entries: 1, flags: MMAPABLE, group: Group::Ids,
        size: Size::Grows(Capacity::Backends, |backends| backends),
        written_by: "agent", read_by: "the next agent, if it has other layouts",
    }

    /// interface index -> flags, bridge, source addresses for SNAT, MTU
    Interfaces = "interfaces": Hash(u32 => device::Device) {
        entries: 1024, flags: ON_DEMAND, size: Size::AtLoad(4096), group: Group::Services,
        written_by: "agent", read_by: "programs",
    }

    /// cookie of a network namespace whose sockets are left alone, because its packets are translated -> 1
    PacketPods = "packet_pods": Hash(u64 => u32) {
        entries: 4096, flags: ON_DEMAND, size: Size::AtLoad(4096), group: Group::Sockets,
        written_by: "agent", read_by: "socket hooks, `debug`",
    }

    /// 0 -> source ports, switches, timeouts. The programs have the same as constants.
    Settings = "settings": Array(u32 => config::StoredSettings) {
        entries: 1, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "agent", read_by: "`debug`",
    }

    /// counter -> count
    Counters = "counters": PerCpuArray(u32 => u64) {
        entries: Counter::COUNT as u32, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "programs", read_by: "agent, `debug`",
    }

    /// map that grows by use -> insertions into it
    Insertions = "insertions": PerCpuArray(u32 => u64) {
        entries: by_use::MAPS, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "programs, for new flows, clients and sockets", read_by: "agent",
    }

    /// ring buffer: some map that grows by use had many insertions
    GrowthSignals = "growth_signals": RingBuf(() => ()) {
        entries: by_use::RING_BYTES, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "programs, for every 256th insertion of a CPU", read_by: "agent",
    }

    /// scratch: how many replies were generated in this window of time; "too big" is counted apart
    Rejects = "rejects": PerCpuArray(u32 => u64) {
        entries: 2, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "tc programs", read_by: "tc programs",
    }

    /// scratch: a fragment on its way into or out of `frag_queue`
    FragBuffer = "frag_buffer": PerCpuArray(u32 => fragment::QueuedFragment) {
        entries: 1, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "packet programs", read_by: "packet programs",
    }

    /// 0 -> is any watch active? slot -> until when, filter
    Watches = "watches": Array(u32 => event::Watch) {
        entries: event::WATCHES + 1, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "`monitor`, `top`, agent",
        read_by: "programs, for new flows, rejects and sockets that get an endpoint",
    }

    /// slot -> ring buffer of events
    WatchRings = "watch_rings": ArrayOfMaps(u32 => u32) {
        entries: event::WATCHES, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "`monitor`", read_by: "programs, with an active watch",
    }

    /// slot -> LRU PERCPU HASH of counts by frontend, endpoint, decision
    WatchRates = "watch_rates": ArrayOfMaps(u32 => u32) {
        entries: event::WATCHES, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "`top`", read_by: "programs, with an active watch",
    }

    /// slot -> events of this second, events lost
    WatchReports = "watch_reports": PerCpuArray(u32 => event::Reported) {
        entries: event::WATCHES, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "programs, with an active watch", read_by: "`monitor`",
    }

    /// scratch: an event, of packets and of sockets
    Event = "event": PerCpuArray(u32 => event::Event) {
        entries: 2, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "programs, with an active watch", read_by: "programs",
    }
}

of_each_family! {
    /// address, port, protocol -> copy of the key, service id and flags
    Frontends = "frontends": Hash(frontend::FrontendKey<F> => frontend::Frontend<F>) {
        entries: 1, flags: ON_DEMAND, group: Group::Services,
        size: Size::Grows(Capacity::Frontends, |frontends| frontends),
        written_by: "agent", read_by: "programs, for new flows and sockets",
    }

    /// slot -> address, port, backend id
    Backends = "backends": Array(u32 => backend::Backend<F>) {
        entries: 1, flags: MMAPABLE, group: Group::Services,
        size: Size::Grows(Capacity::Slots, |slots| slots),
        written_by: "agent", read_by: "programs, for new flows and sockets",
    }

    /// confirmed flows: tuple as seen, protocol, lookup point -> tuple as sent, last seen, backend id, service id, state, flags, MAC, TCP's ISN,
    /// last acknowledgment number, timestamp
    Flows = "flows": LruHash(flow::FlowKey<F> => flow::Flow<F>) {
        entries: 1, flags: 0, group: Group::Flows,
        size: Size::ByUse(ByUse { number: 0, first: by_use::FIRST_FLOWS, most: Most::Flows }),
        written_by: "packet programs", read_by: "packet programs",
    }

    /// unconfirmed flows: the same
    Pending = "pending": LruHash(flow::FlowKey<F> => flow::Flow<F>) {
        entries: 1, flags: 0, group: Group::Flows,
        size: Size::ByUse(ByUse { number: 1, first: by_use::FIRST_FLOWS, most: Most::PendingFlows }),
        written_by: "packet programs", read_by: "packet programs",
    }

    /// tuple of a reply, protocol -> last seen, flags
    Outbound = "outbound": LruHash(flow::FlowKey<F> => outbound::Outbound) {
        entries: outbound::ENTRIES, flags: 0, size: Size::InObject, group: Group::Flows,
        written_by: "egress programs, agent", read_by: "ingress programs, for new UDP flows and source ports",
    }

    /// hash -> neighbour that packets are sent to, interface, last used, last passed on by XDP. Behind the slots the agent's heartbeat.
    NextHops = "next_hops": Array(u32 => next_hop::NextHop<F>) {
        entries: next_hop::ELEMENTS, flags: MMAPABLE, size: Size::InObject, group: Group::Services,
        written_by: "packet programs with each FIB lookup, agent", read_by: "agent; XDP",
    }

    /// number -> address of `--snat-address`
    SnatSources = "snat_sources": Array(u32 => Addr<F>) {
        entries: config::MAX_SNAT_SOURCES, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "agent", read_by: "packet programs, for new flows",
    }

    /// network namespace cookie, bucket, way -> socket cookie, address, port, direction; address, port, backend id, service id. 4,096 of each
    /// network namespace.
    Sockets = "sockets": LruHash(socket::SharedKey => socket::SharedPeer<F>) {
        entries: 1, flags: 0, group: Group::Sockets,
        size: Size::ByUse(ByUse { number: 2, first: by_use::FIRST_CLIENTS, most: Most::Entries(1 << 16) }),
        written_by: "socket programs", read_by: "socket programs",
    }

    /// low bits of a socket's cookie -> cookie of the owner, whether it released the cell; VIP, backend, backend id, service id
    PeerCells = "peer_cells": Array(u32 => socket::PeerCell<F>) {
        entries: socket::CELLS, flags: 0, size: Size::InObject, group: Group::Sockets,
        written_by: "`connect`, `sock_release`", read_by: "`recvmsg`, `getpeername`, `sendmsg`, `socket_backend`",
    }

    /// connected socket whose cell is taken -> VIP, backend, backend id, service id
    Connected = "connected": SkStorage(i32 => socket::ConnectedPeer<F>) {
        entries: 0, flags: ON_DEMAND, size: Size::InObject, group: Group::Sockets,
        written_by: "`connect`", read_by: "`recvmsg`, `getpeername`, `sendmsg`, `socket_backend`",
    }

    /// unconnected UDP socket -> two VIPs, each with backend, ids, stamp of the last check, checksum
    UdpPeers = "udp_peers": SkStorage(i32 => socket::UdpPeers<F>) {
        entries: 0, flags: ON_DEMAND, size: Size::InObject, group: Group::Sockets,
        written_by: "`sendmsg`", read_by: "`sendmsg`, `recvmsg`",
    }

    /// client, service id, network namespace -> address, port, backend id, last used
    Affinity = "affinity": LruHash(affinity::AffinityKey<F> => affinity::Affinity<F>) {
        entries: 1, flags: 0, group: Group::Flows,
        size: Size::ByUse(ByUse { number: 3, first: by_use::FIRST_CLIENTS, most: Most::Entries(1 << 16) }),
        written_by: "programs", read_by: "programs, for new flows and sockets with session affinity",
    }

    /// service id and prefix -> 1
    SourceRanges = "source_ranges": LpmTrie(source_range::SourceRange<F> => u32) {
        entries: 1, flags: ON_DEMAND, size: Size::AtLoad(source_range::MAX_SOURCE_RANGES), group: Group::Services,
        written_by: "agent", read_by: "programs, for frontends with source ranges",
    }

    /// 0 -> four prefixes
    ServiceCidrs = "service_cidrs": Array(u32 => cidr::ServiceCidrs<F>) {
        entries: 1, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "agent", read_by: "uplink programs, on egress",
    }

    /// prefix -> whether an IPsec policy covers it; MTU and interface of its route, where `bpf_fib_lookup` does not report them
    Destinations = "destinations": LpmTrie(destination::Destination<F> => destination::RouteHint) {
        entries: 1, flags: ON_DEMAND, size: Size::AtLoad(destination::MAX_DESTINATIONS), group: Group::Services,
        written_by: "agent", read_by: "uplink programs, with a FIB lookup, where such prefixes exist",
    }

    /// network namespace cookie -> address
    Netns = "netns": Hash(u64 => Addr<F>) {
        entries: 1024, flags: ON_DEMAND, size: Size::AtLoad(4096), group: Group::Services,
        written_by: "agent", read_by: "socket programs, for frontends with source ranges",
    }

    /// address -> serves nodePorts; is a source for SNAT
    NodeAddrs = "node_addrs": Hash(Addr<F> => u32) {
        entries: 4096, flags: ON_DEMAND, size: Size::InObject, group: Group::Services,
        written_by: "agent", read_by: "programs",
    }

    /// addresses, identification, protocol -> ports, protocol
    Fragments = "fragments": LruHash(fragment::FragmentKey<F> => fragment::FragmentPorts) {
        entries: 8192, flags: 0, size: Size::InObject, group: Group::Flows,
        written_by: "tc programs", read_by: "tc programs, for fragments",
    }

    /// addresses, identification, protocol, number -> bytes of a queued fragment
    FragQueue = "frag_queue": LruHash(fragment::QueuedFragmentKey<F> => fragment::QueuedFragment) {
        entries: 256, flags: 0, size: Size::InObject, group: Group::Flows,
        written_by: "tc programs", read_by: "tc programs, for fragments before the first one",
    }

    /// scratch: both entries of a new flow, operands of FIB lookups, generated replies
    FlowDraft = "flow_draft": PerCpuArray(u32 => flow::FlowDraft<F>) {
        entries: 1, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "packet programs", read_by: "packet programs",
    }

    /// scratch: the packet and its outcome
    Scratch = "scratch": PerCpuArray(u32 => OfPrograms) {
        entries: 1, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "packet programs", read_by: "packet programs",
    }

    /// hash of next hop and interface -> route to it, since when the element has it
    HopRoutes = "hop_routes": Array(u32 => OfPrograms) {
        entries: next_hop::SLOTS, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "packet programs", read_by: "packet programs, for flows with SNAT",
    }

    /// FIB cache: hash of source and destination -> last query and its result
    FibCache = "fib_cache": PerCpuArray(u32 => OfPrograms) {
        entries: 512, flags: 0, size: Size::InObject, group: Group::Services,
        written_by: "packet programs", read_by: "packet programs",
    }
}
