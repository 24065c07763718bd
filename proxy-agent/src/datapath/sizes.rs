//! Entries of the maps.

use proxy_common::layout::{
    destination::MAX_DESTINATIONS,
    maps::{self, MIN_PENDING, PENDING_PART, Size},
};

use super::{object_config::ObjectConfig, room::Room};
use crate::net::routes::MAX_HINTS;

/// Prefixes of IPsec policies; with more of them the stack sends everything.
pub(super) const MAX_POLICIES: usize = MAX_DESTINATIONS as usize / 4;
const _: () = assert!(2 * (MAX_POLICIES + MAX_HINTS) <= MAX_DESTINATIONS as usize);

/// Entries of the maps that are not sized in the object; maps of services have so much room.
pub(super) fn map_sizes(config: &ObjectConfig, room: &Room) -> Vec<(&'static str, u32)> {
    let mut sizes = room.maps();
    sizes.extend(maps::all().filter_map(|map| {
        let entries = match map.size {
            // The latter are in `room`.
            Size::InObject | Size::Grows(..) => return None,
            Size::AtLoad(entries) => entries,
            Size::Flows => config.max_flows,
            Size::PendingFlows => (config.max_flows / PENDING_PART).max(MIN_PENDING),
        };
        Some((map.name, entries))
    }));
    sizes
}
