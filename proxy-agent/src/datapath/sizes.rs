//! The maps and their sizes.

use super::{object_config::ObjectConfig, room::Room};
use crate::net::routes::MAX_HINTS;

/// Entries of maps that keep their size; the flow maps are sized by [`ObjectConfig::max_flows`], those of services by [`Room`].
const MAX_SOCKETS: u32 = 1 << 16;
const MAX_AFFINITIES: u32 = 1 << 16;
/// A trie takes memory for what is in it alone.
pub(super) const MAX_SOURCES: u32 = 1 << 18;
/// Prefixes of which more is known than the FIB reports: room for those of IPsec policies and routes, and as many of before.
pub(super) const MAX_DESTINATIONS: u32 = 8192;
/// Prefixes of IPsec policies; with more of them the stack sends everything.
pub(super) const MAX_POLICIES: usize = MAX_DESTINATIONS as usize / 4;
const _: () = assert!(2 * (MAX_POLICIES + MAX_HINTS) <= MAX_DESTINATIONS as usize);
const MAX_NETNS: u32 = 4096;
const MAX_DEVICES: u32 = 4096;

/// Entries for unconfirmed flows at least: with two for each and SYN-ACKs after 1, 3, 7 s, enough for thousands of clients a second.
const MIN_PENDING: u32 = 1 << 16;

/// Every map of the object, and so everything that is pinned.
pub(super) const MAPS: &[&str] = &[
    "affinity_v4",
    "affinity_v6",
    "alive",
    "answers",
    "backend_ids",
    "backends_v4",
    "backends_v6",
    "counters",
    "destinations_v4",
    "destinations_v6",
    "devices",
    "event",
    "flows_v4",
    "flows_v6",
    "fragments_v4",
    "fragments_v6",
    "frontends_v4",
    "frontends_v6",
    "held_v4",
    "held_v6",
    "holding",
    "names",
    "netns_v4",
    "netns_v6",
    "next_hops_v4",
    "next_hops_v6",
    "node_addrs_v4",
    "node_addrs_v6",
    "outbound_v4",
    "outbound_v6",
    "packet_pods",
    "pair_v4",
    "pair_v6",
    "peers_v4",
    "peers_v6",
    "pending_v4",
    "pending_v6",
    "refusals",
    "routes_v4",
    "routes_v6",
    "scratch_v4",
    "scratch_v6",
    "service_cidrs_v4",
    "service_cidrs_v6",
    "sets",
    "settings",
    "snat_sources_v4",
    "snat_sources_v6",
    "sockets_v4",
    "sockets_v6",
    "sources_v4",
    "sources_v6",
    "udp_peers_v4",
    "udp_peers_v6",
    "vip_filter",
    "watch_rates",
    "watch_reports",
    "watch_rings",
    "watches",
];

/// Entries of the maps that are not sized in the object; maps of services have so much room.
pub(super) fn map_sizes(config: &ObjectConfig, room: &Room) -> Vec<(&'static str, u32)> {
    let max_pending = (config.max_flows / 4).max(MIN_PENDING);
    let mut sizes = room.maps();
    sizes.extend([
        ("flows_v4", config.max_flows),
        ("flows_v6", config.max_flows),
        ("pending_v4", max_pending),
        ("pending_v6", max_pending),
        ("sockets_v4", MAX_SOCKETS),
        ("sockets_v6", MAX_SOCKETS),
        ("affinity_v4", MAX_AFFINITIES),
        ("affinity_v6", MAX_AFFINITIES),
        ("destinations_v4", MAX_DESTINATIONS),
        ("destinations_v6", MAX_DESTINATIONS),
        ("sources_v4", MAX_SOURCES),
        ("sources_v6", MAX_SOURCES),
        ("netns_v4", MAX_NETNS),
        ("netns_v6", MAX_NETNS),
        ("packet_pods", MAX_NETNS),
        ("devices", MAX_DEVICES),
    ]);
    sizes
}
