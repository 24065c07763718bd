//! Moves to larger maps.

use anyhow::Result;
use proxy_common::layout::{
    backend::BackendState,
    backend_id::BackendId,
    name::ServiceName,
    set::{BackendSet, SetPolicy},
};

use super::{
    Maps, Services,
    error::{Cause, WriteError},
};
use crate::{
    datapath::{
        array::MmapArray,
        maps::MapFamily,
        room::{Part, Room},
        table::Table,
    },
    model::plan::{IpFamily, PortPlan},
};

impl Services {
    /// How much there is room for.
    pub fn room(&self) -> Room {
        let mut room = Room::default();
        room.set(Part::ServicePorts, self.shared.sets.len() / SetPolicy::STRIDE);
        room.set(Part::Backends, self.shared.alive.len() * BackendState::PER_ELEMENT);
        room.set(Part::Slots(IpFamily::V4), self.v4.tables.backends.len());
        room.set(Part::Slots(IpFamily::V6), self.v6.tables.backends.len());
        room.set(Part::Frontends(IpFamily::V4), self.v4.tables.frontends.capacity().unwrap_or(u32::MAX));
        room.set(Part::Frontends(IpFamily::V6), self.v6.tables.frontends.capacity().unwrap_or(u32::MAX));
        room.set(Part::Flows(IpFamily::V4), self.v4.tables.has_flows.into());
        room.set(Part::Flows(IpFamily::V6), self.v6.tables.has_flows.into());
        room
    }

    /// How much of it is used.
    pub fn used(&self) -> Room {
        let usage = self.usage();
        let mut used = Room::default();
        used.set(Part::ServicePorts, usage.service_ports);
        used.set(Part::Backends, usage.backends);
        for family in IpFamily::ALL {
            used.set(Part::Slots(family), usage.slots[family as usize]);
            used.add(Part::Frontends(family), self.owned_by_family[family as usize]);
        }
        used
    }

    /// Refuses frontends of a family without room for its flows: no program may see one before.
    ///
    /// # Errors
    /// [`Cause::Full`].
    pub(super) fn require_flows(&self, plan: &PortPlan) -> Result<(), WriteError> {
        let flows = Part::Flows(plan.name.family);
        if plan.frontends.is_empty() || self.room().of(flows) > 0 {
            return Ok(());
        }
        Err(Cause::Full(flows).into())
    }

    /// Copies the entries of the maps that differ into those of `larger`.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub(in crate::datapath) fn copy_to(&self, larger: &mut Maps) -> Result<()> {
        let (sets, alive) = (&self.shared.sets, &self.shared.alive);
        if larger.sets.len() > sets.len() {
            sets.copy_to(&larger.sets);
        }
        if larger.alive.len() > alive.len() {
            alive.copy_to(&larger.alive);
        }
        if larger.records.len() > self.shared.records.len() {
            self.shared.records.copy_to(&larger.records);
        }
        copy_table(&*self.shared.names, &mut *larger.names)?;
        copy_family(&self.v4, &mut larger.v4)?;
        copy_family(&self.v6, &mut larger.v6)
    }

    /// Uses these maps, which have the same contents, from now on.
    pub(in crate::datapath) fn move_to(&mut self, larger: Maps) {
        let Maps { v4, v6, names, sets, alive, filter: _, records } = larger;
        self.v4.slices.grow(v4.backends.len());
        self.v6.slices.grow(v6.backends.len());
        self.shared.service_ids.grow(room_for_service_ids(&sets, &*names));
        self.shared.backend_ids.grow(room_for_backend_ids(&alive, &records));
        (self.v4.tables, self.v6.tables) = (v4, v6);
        (self.shared.names, self.shared.sets, self.shared.alive) = (names, sets, alive);
        self.shared.records = records;
    }
}

/// How many ids of service ports all maps have room for.
pub(super) fn room_for_service_ids(sets: &MmapArray<BackendSet>, names: &dyn Table<u32, ServiceName>) -> u32 {
    (sets.len() / SetPolicy::STRIDE).min(names.capacity().unwrap_or(u32::MAX))
}

/// How many ids of backends all maps have room for.
pub(super) fn room_for_backend_ids(alive: &MmapArray<BackendState>, records: &MmapArray<BackendId>) -> u32 {
    (alive.len() * BackendState::PER_ELEMENT).min(records.len())
}

fn copy_family<F: MapFamily>(
    family: &super::family::FamilyMaps<F>,
    larger: &mut super::family::FamilyTables<F>,
) -> Result<()> {
    let tables = &family.tables;
    if larger.backends.len() > tables.backends.len() {
        tables.backends.copy_to(&larger.backends);
    }
    copy_table(&*tables.frontends, &mut *larger.frontends)
}

/// Source ranges have no larger map; a table of the same size is the same map.
fn copy_table<K, V>(table: &dyn Table<K, V>, larger: &mut dyn Table<K, V>) -> Result<()> {
    if larger.capacity() > table.capacity() {
        for (key, value) in table.entries()? {
            larger.insert(key, value)?;
        }
    }
    Ok(())
}
