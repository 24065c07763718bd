//! Entries of the maps.

use std::collections::HashMap;

use proxy_common::layout::{
    destination::MAX_DESTINATIONS,
    maps::{self, ByUse, Definition, Kind, MIN_PENDING, Most, PENDING_PART, Size},
};

use super::{
    by_use::first,
    maps::capacity,
    pins::Pins,
    room::{Part, Room},
};
use crate::{model::plan::IpFamily, net::routes::MAX_HINTS};

/// Entries of a map whose family is not used: the kernel makes no map without any.
pub(crate) const UNUSED: u32 = 1;

/// Prefixes of IPsec policies; with more of them the stack sends everything.
pub(super) const MAX_POLICIES: usize = MAX_DESTINATIONS as usize / 4;
const _: () = assert!(2 * (MAX_POLICIES + MAX_HINTS) <= MAX_DESTINATIONS as usize);

/// Entries of the maps that are not sized in the object; maps of services have so much room.
pub(super) fn map_sizes(max_flows: u32, room: &Room) -> Vec<(&'static str, u32)> {
    let mut sizes = room.maps();
    let is_used = |map: &Definition| {
        IpFamily::ALL.iter().all(|family| !is_of_flows(map, *family) || room.of(Part::Flows(*family)) > 0)
    };
    sizes.extend(maps::all().filter_map(|map| {
        let entries = entries(map, max_flows)?;
        Some((map.name, if is_used(map) { entries } else { UNUSED }))
    }));
    sizes
}

/// Maps of flows, clients and sockets of a family, with their entries once the family has Services.
pub(super) fn maps_of_flows(max_flows: u32, family: IpFamily) -> Vec<(&'static Definition, u32)> {
    let of_family = maps::all().filter(|map| is_of_flows(map, family));
    of_family.filter_map(|map| Some((map, entries(map, max_flows)?))).collect()
}

/// Whether the maps of flows of a family are made for use.
pub(super) fn has_flows(pins: &Pins, family: IpFamily) -> bool {
    will_have_flows(pins, &HashMap::new(), family)
}

/// The same, once maps that are not pinned are made with so many entries.
pub(super) fn will_have_flows(pins: &Pins, entries: &HashMap<&str, u32>, family: IpFamily) -> bool {
    let entries = |name| capacity(pins, name).or_else(|| entries.get(name).copied());
    maps::all().filter(|map| is_of_flows(map, family)).all(|map| entries(map.name) != Some(UNUSED))
}

/// Whether a pinned map of flows has the size of an unused family.
pub(super) fn is_unused(pins: &Pins, map: &str) -> bool {
    capacity(pins, map) == Some(UNUSED)
}

/// Whether only Services of a family create the entries of a map, and the kernel allocates all of them at once.
pub(super) fn is_of_flows(map: &Definition, family: IpFamily) -> bool {
    map.kind == Kind::LruHash && map.family == Some(family as usize)
}

/// Entries of a map that is neither always sized in the object nor in [`Room`].
fn entries(map: &Definition, max_flows: u32) -> Option<u32> {
    match map.size {
        // Those of a family may be unused.
        Size::InObject if map.kind == Kind::LruHash => Some(map.entries),
        Size::InObject | Size::Grows(..) => None,
        Size::AtLoad(entries) => Some(entries),
        Size::ByUse(size) => Some(first(size, most(size, max_flows))),
    }
}

/// The most entries of a map that grows by use.
pub(crate) fn most(size: ByUse, max_flows: u32) -> u32 {
    match size.most {
        Most::Entries(entries) => entries,
        Most::Flows => max_flows.max(UNUSED + 1),
        Most::PendingFlows => (max_flows / PENDING_PART).max(MIN_PENDING),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const FLOWS: u32 = 1 << 20;

    #[test]
    fn a_family_without_services_has_no_room_for_flows() {
        let whole: BTreeMap<_, _> = map_sizes(FLOWS, &Room::initial()).into_iter().collect();
        let of_flows = [
            "flows_v6",
            "pending_v6",
            "outbound_v6",
            "sockets_v6",
            "affinity_v6",
            "fragments_v6",
            "frag_queue_v6",
        ];
        for absent in IpFamily::ALL {
            let mut room = Room::initial();
            room.set(Part::Flows(absent), 0);
            let sizes: BTreeMap<_, _> = map_sizes(FLOWS, &room).into_iter().collect();
            let without: BTreeSet<_> =
                sizes.iter().filter(|size| *size.1 == UNUSED).map(|size| *size.0).collect();
            let expected = of_flows.map(|name| name.replace("_v6", ["_v4", "_v6"][absent as usize]));
            assert_eq!(without, expected.iter().map(String::as_str).collect());
            assert!(sizes.iter().all(|(name, size)| without.contains(name) || size == &whole[name]));
            // Growth makes them whole.
            let later: BTreeMap<_, _> =
                maps_of_flows(FLOWS, absent).into_iter().map(|(map, entries)| (map.name, entries)).collect();
            assert!(later.keys().copied().eq(without.iter().copied()));
            assert!(later.iter().all(|(name, size)| size == &whole[name]));
        }
    }
}
