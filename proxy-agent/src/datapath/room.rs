//! How much the maps hold that only the agent writes, and when they grow.
//!
//! They begin small. Before one is more than four fifths full, or when a Service finds no room, it is replaced by a larger one
//! ([`super::grow`]). They never shrink: room that was needed once may be needed again.

use std::collections::BTreeSet;

use proxy_common::layout::{
    maps::{self, Capacity, Definition, Size},
    source_range::MAX_SOURCE_RANGES,
};

use super::{pins::Pins, sizes};
use crate::model::plan::IpFamily;

/// Something that there is only so much room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Ids of service ports, of both families.
    ServicePorts,
    /// Ids of endpoints of service ports, of both families.
    Backends,
    /// Slots of a family: endpoints in the sets of its service ports.
    Slots(IpFamily),
    /// Frontends of a family.
    Frontends(IpFamily),
    /// Flows, sockets and clients of a family, which only its Services create: room for all (1) or for none (0). The kernel allocates all
    /// entries of such a map at once, so a node that has no address of the family gets room when the first Service needs it.
    Flows(IpFamily),
    /// Source ranges of a family; there is room for [`MAX_SOURCE_RANGES`] from the beginning.
    SourceRanges(IpFamily),
}

impl Part {
    /// The parts that grow.
    const GROWING: [Self; 8] = [
        Self::ServicePorts,
        Self::Backends,
        Self::Slots(IpFamily::V4),
        Self::Slots(IpFamily::V6),
        Self::Frontends(IpFamily::V4),
        Self::Frontends(IpFamily::V6),
        Self::Flows(IpFamily::V4),
        Self::Flows(IpFamily::V6),
    ];

    /// One of them, in words.
    pub(super) fn one(self) -> &'static str {
        match self {
            Self::ServicePorts => "service port",
            Self::Backends => "endpoint",
            Self::Slots(IpFamily::V4) => "IPv4 endpoint",
            Self::Slots(IpFamily::V6) => "IPv6 endpoint",
            Self::Frontends(IpFamily::V4) => "IPv4 frontend",
            Self::Frontends(IpFamily::V6) => "IPv6 frontend",
            Self::Flows(IpFamily::V4) => "IPv4 flow",
            Self::Flows(IpFamily::V6) => "IPv6 flow",
            Self::SourceRanges(_) => "source range",
        }
    }

    /// How much there is room for at first, and at most.
    fn limits(self) -> (u32, u32) {
        match (self, self.capacity()) {
            (_, Some((capacity, _))) => (capacity.initial(), capacity.most()),
            (Self::Flows(_), None) => (1, 1),
            (_, None) => (MAX_SOURCE_RANGES, MAX_SOURCE_RANGES),
        }
    }

    /// Which capacity of the maps it is, and of which family; `None` if it does not grow.
    fn capacity(self) -> Option<(Capacity, Option<IpFamily>)> {
        match self {
            Self::ServicePorts => Some((Capacity::ServicePorts, None)),
            Self::Backends => Some((Capacity::Backends, None)),
            Self::Slots(family) => Some((Capacity::Slots, Some(family))),
            Self::Frontends(family) => Some((Capacity::Frontends, Some(family))),
            Self::Flows(_) | Self::SourceRanges(_) => None,
        }
    }

    /// The maps that hold it, with the entries that they take for so many. [`super::sizes`] has those of flows.
    fn maps(self, room: u32) -> Vec<(&'static str, u32)> {
        let Some((own, family)) = self.capacity() else { return Vec::new() };
        let entries = |map: &'static Definition| match map.size {
            Size::Grows(capacity, entries)
                if capacity == own && map.family == family.map(|family| family as usize) =>
            {
                Some((map.name, entries(room)))
            }
            _ => None,
        };
        maps::all().filter_map(entries).collect()
    }
}

/// An amount of each part: capacity, or demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room([u32; Part::GROWING.len()]);

impl Room {
    /// How much of a part.
    pub fn of(&self, part: Part) -> u32 {
        position(part).map_or(0, |at| self.0[at])
    }

    /// Sets how much of a part.
    pub fn set(&mut self, part: Part, amount: u32) {
        if let Some(at) = position(part) {
            self.0[at] = amount;
        }
    }

    /// Adds to a part.
    pub fn add(&mut self, part: Part, amount: usize) {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX);
        self.set(part, self.of(part).saturating_add(amount));
    }

    /// The larger amount of each part.
    pub fn max(&self, other: &Self) -> Self {
        let mut most = *self;
        Part::GROWING.iter().for_each(|part| most.set(*part, self.of(*part).max(other.of(*part))));
        most
    }

    /// The capacity of new maps.
    pub(super) fn initial() -> Self {
        Self(Part::GROWING.map(|part| part.limits().0))
    }

    /// The capacity of new maps beside pinned maps of ids, which a release with other layouts may have made larger, on a node that may have no
    /// address of a family.
    pub(super) fn of_new_maps(pins: &Pins, absent: Option<IpFamily>) -> Self {
        let mut room = Self::initial();
        if let Some(family) = absent {
            room.set(Part::Flows(family), 0);
        }
        for (part, ids) in [(Part::ServicePorts, "service_names"), (Part::Backends, "backend_ids")] {
            let entries = entries(pins, ids).unwrap_or(0);
            room.set(part, room.of(part).max(entries));
        }
        room
    }

    /// Whether more than four fifths of any part that can grow are used.
    pub fn is_short(&self, used: &Self) -> bool {
        Part::GROWING
            .iter()
            .any(|part| self.of(*part) < part.limits().1 && !is_ample(self.of(*part), used.of(*part)))
    }

    /// The room for this demand, if these parts were found full. `None` if that is not more than the present room.
    pub fn grown(&self, wanted: &Self, full: &BTreeSet<Part>) -> Option<Self> {
        let mut grown = *self;
        for part in Part::GROWING {
            let (now, most) = (self.of(part), part.limits().1);
            // Room may be in pieces that are too small, or not free yet.
            let mut room = if full.contains(&part) { now.saturating_mul(2).max(1) } else { now };
            while room < most && !is_ample(room, wanted.of(part)) {
                room = room.saturating_mul(2);
            }
            grown.set(part, room.min(most).max(now));
        }
        (grown != *self).then_some(grown)
    }

    /// The maps that are larger in this one, with their entries.
    pub(super) fn larger_maps(&self, before: &Self) -> Vec<(&'static str, u32)> {
        let larger = Part::GROWING.into_iter().filter(|part| self.of(*part) > before.of(*part));
        larger.flat_map(|part| part.maps(self.of(part))).collect()
    }

    /// All maps of this room, with their entries.
    pub(super) fn maps(&self) -> Vec<(&'static str, u32)> {
        Part::GROWING.into_iter().flat_map(|part| part.maps(self.of(part))).collect()
    }
}

/// Whether so many leave a fifth of the room.
fn is_ample(room: u32, used: u32) -> bool {
    u64::from(used) * 5 <= u64::from(room) * 4
}

fn position(part: Part) -> Option<usize> {
    Part::GROWING.iter().position(|known| *known == part)
}

/// Names of the maps that may be replaced by larger ones.
pub(super) fn growing_maps() -> impl Iterator<Item = &'static str> {
    let is_of_flows = |map: &&Definition| IpFamily::ALL.iter().any(|family| sizes::is_of_flows(map, *family));
    // Programs find those that grow by use in an array, which stays.
    let of_flows = maps::all().filter(is_of_flows).filter(|map| map.by_use().is_none()).map(|map| map.name);
    Room::initial().maps().into_iter().map(|(name, _)| name).chain(of_flows)
}

/// Whether there are more ids than the pinned maps of services have room for.
pub(super) fn is_short_of_ids(pins: &Pins) -> bool {
    let room = Room::of_new_maps(pins, None);
    room.maps().into_iter().any(|(name, wanted)| entries(pins, name).is_some_and(|entries| entries < wanted))
}

fn entries(pins: &Pins, map: &str) -> Option<u32> {
    aya::maps::MapInfo::from_pin(pins.map(map)).ok().map(|info| info.max_entries())
}

/// Whether a pinned map is no longer one of these. `ids` are the kernel's, by name.
pub(super) fn were_replaced(pins: &Pins, ids: impl Iterator<Item = (&'static str, u32)>) -> bool {
    let pinned = |name: &str| aya::maps::MapInfo::from_pin(pins.map(name)).ok().map(|info| info.id());
    ids.into_iter().any(|(name, id)| pinned(name) != Some(id))
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::set::SetPolicy;

    use super::*;

    fn with(part: Part, amount: u32) -> Room {
        let mut room = Room::initial();
        room.set(part, amount);
        room
    }

    #[test]
    fn room_grows_by_doubling_until_a_fifth_is_left() {
        let part = Part::ServicePorts;
        let initial = Room::initial();
        for (wanted, full, expected) in [
            (100, false, None),
            (3276, false, None),
            (3277, false, Some(8192)),
            (100, true, Some(8192)),
            (10_000, true, Some(16_384)),
            (10_000_000, true, Some(1 << 20)),
        ] {
            let mut demand = Room::default();
            demand.set(part, wanted);
            let full = full.then_some(part).into_iter().collect();
            let grown = initial.grown(&demand, &full);
            assert_eq!(grown, expected.map(|room| with(part, room)), "{wanted} {full:?}");
            assert_eq!(initial.is_short(&demand), wanted > 3276, "{wanted}");
        }
    }

    #[test]
    fn there_is_an_end() {
        let most = Room(Part::GROWING.map(|part| part.limits().1));
        let full = Part::GROWING.into_iter().collect();
        assert_eq!(most.grown(&most, &full), None);
        assert!(!most.is_short(&most));
        // Maps of an earlier agent may be larger than any of this one.
        let larger = with(Part::Backends, 1 << 23);
        assert_eq!(larger.grown(&Room::default(), &[Part::Backends].into()), None);
    }

    #[test]
    fn maps_of_what_grows() {
        let initial = Room::initial();
        let grown = with(Part::ServicePorts, 8192);
        assert_eq!(
            grown.larger_maps(&initial),
            [("backend_sets", 8192 * SetPolicy::STRIDE), ("service_names", 8192)]
        );
        let grown = with(Part::Slots(IpFamily::V6), 1 << 15);
        assert_eq!(grown.larger_maps(&initial), [("backends_v6", 1 << 15)]);
        assert_eq!(growing_maps().count(), 8 + 2 * 3);
    }

    #[test]
    fn flows_have_all_room_or_none() {
        let part = Part::Flows(IpFamily::V6);
        let without = with(part, 0);
        assert!(!without.is_short(&Room::default()), "nothing asks for it");
        assert_eq!(without.grown(&Room::default(), &BTreeSet::new()), None);
        let whole = without.grown(&Room::default(), &[part].into());
        assert_eq!(whole, Some(Room::initial()));
        assert_eq!(Room::initial().grown(&Room::default(), &[part].into()), None);
    }
}
