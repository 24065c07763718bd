//! Takes over an earlier agent's state in the maps.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use anyhow::Result;
use ipnet::IpNet;
use proxy_common::{
    V4, V6,
    layout::{
        backend::{Backend, BackendState},
        frontend::FrontendKey,
        id::Id,
        name::ServiceName,
        set::{BackendSet, SetPolicy},
        source_range::SourceRange,
    },
};
use tracing::warn;

use super::{
    Maps, Services,
    family::FamilyTables,
    port::{Member, OwnedFrontend, PortState, SetState},
    records,
};
use crate::{
    datapath::{address::protocol_of, array::MmapArray, maps::MapFamily, table::SourcePrefix},
    model::{
        objects::ObjectName,
        plan::{IpFamily, PortName},
    },
};

/// An earlier agent's state.
#[derive(Default)]
pub(super) struct Restored {
    pub(super) ports: HashMap<PortName, PortState>,
    by_id: HashMap<Id, PortName>,
    v4: StaleEntries<V4>,
    v6: StaleEntries<V6>,
    doubled: Vec<u32>,
}

/// Stale entries: traces of an agent that was killed between two writes.
struct StaleEntries<F: MapFamily> {
    frontends: Vec<FrontendKey<F>>,
    sources: Vec<SourcePrefix<F>>,
}

impl<F: MapFamily> Default for StaleEntries<F> {
    fn default() -> Self {
        Self { frontends: Vec::new(), sources: Vec::new() }
    }
}

impl Restored {
    pub(super) fn read(maps: &Maps) -> Result<Self> {
        let mut restored = Self::default();
        let room = super::room_for_service_ids(&maps.sets, &*maps.names);
        for (id, name) in maps.names.entries()? {
            match parse_name(&name).filter(|_| Id(id).index() < room) {
                Some(port) if !restored.ports.contains_key(&port) => {
                    restored.by_id.insert(Id(id), port.clone());
                    let state = PortState { id: Id(id), is_named: true, ..PortState::default() };
                    restored.ports.insert(port, state);
                }
                _ => restored.doubled.push(id),
            }
        }
        restored.v4 = restored.read_family(&maps.sets, &maps.v4)?;
        restored.v6 = restored.read_family(&maps.sets, &maps.v6)?;
        let members = restored.ports.values().flat_map(|state| state.backends.values());
        let taken: HashSet<u32> = members.map(|member| member.id.index()).collect();
        let room = super::room_for_backend_ids(&maps.alive, &maps.records);
        for record in records::noted(&maps.records, room) {
            if !taken.contains(&record.id.index())
                && let Some(state) = restored.port(record.service)
            {
                records::add_stray(state, &record);
            }
        }
        Ok(restored)
    }

    fn port(&mut self, id: Id) -> Option<&mut PortState> {
        self.by_id.get(&id).and_then(|name| self.ports.get_mut(name))
    }

    /// Reads the maps of a family; returns entries without an owner.
    fn read_family<F: MapFamily>(
        &mut self,
        sets: &MmapArray<BackendSet>,
        tables: &FamilyTables<F>,
    ) -> Result<StaleEntries<F>> {
        let mut stale_entries = StaleEntries::default();
        for (key, value) in tables.frontends.entries()? {
            let target = value.checked(&key);
            match target.and_then(|target| Some((target, self.port(target.service())?))) {
                Some((target, state)) => {
                    let address = SocketAddr::new(F::to_ip(&key.addr), u16::from_be(key.port));
                    state.frontends.insert(OwnedFrontend { address, protocol: key.protocol }, target.flags());
                }
                None => stale_entries.frontends.push(key),
            }
        }
        for (key, _) in tables.sources.entries()? {
            let (bits, source) = key;
            match (self.port(source.service), clients::<F>(bits, &source)) {
                (Some(state), Some(clients)) => {
                    state.sources.insert(clients);
                }
                _ => stale_entries.sources.push(key),
            }
        }
        for (_, state) in self.ports.iter_mut().filter(|(name, _)| name.family == F::FAMILY) {
            read_sets(state, sets, &tables.backends);
        }
        Ok(stale_entries)
    }

    /// Removes entries without an owner.
    pub(super) fn remove_stale_entries(self, services: &mut Services) {
        let frontends = |key| services.v4.tables.frontends.remove(key);
        let mut results: Vec<io::Result<()>> = self.v4.frontends.iter().map(frontends).collect();
        results.extend(self.v6.frontends.iter().map(|key| services.v6.tables.frontends.remove(key)));
        results.extend(self.v4.sources.iter().map(|key| services.v4.tables.sources.remove(key)));
        results.extend(self.v6.sources.iter().map(|key| services.v6.tables.sources.remove(key)));
        results.extend(self.doubled.iter().map(|id| services.shared.names.remove(id)));
        for error in results.into_iter().filter_map(Result::err) {
            warn!("cannot remove stale entries of an earlier agent: {error}");
        }
    }
}

/// Reads the sets of a service port; by them it knows its backends.
fn read_sets<F: MapFamily>(
    state: &mut PortState,
    sets: &MmapArray<BackendSet>,
    backends: &MmapArray<Backend<F>>,
) {
    state.affinity = sets.read(BackendSet::affinity_index(state.id)).unwrap_or_default().0 as u32;
    for set_policy in SetPolicy::ALL {
        let set = sets.read(BackendSet::index(state.id, set_policy)).unwrap_or_default();
        let before = state.sets[..set_policy as usize].iter().find(|known| known.set == set);
        let shared = before.map(|known| Arc::clone(&known.endpoints));
        let slots = set.base()..set.base().saturating_add(set.count());
        let mut endpoints = Vec::with_capacity(slots.len());
        for backend in slots.filter_map(|slot| backends.read(slot)) {
            let endpoint = F::to_socket(&backend.addr, backend.port);
            let known = state.backends.get(&endpoint).copied();
            let Member { id, set_policies } = known.unwrap_or(Member { id: backend.id, set_policies: 0 });
            state.backends.insert(endpoint, Member { id, set_policies: set_policies | set_policy.bit() });
            endpoints.push(endpoint);
        }
        let endpoints = shared.unwrap_or_else(|| endpoints.into());
        state.sets[set_policy as usize] = SetState { set, endpoints };
    }
}

fn clients<F: MapFamily>(bits: u32, source: &SourceRange<F>) -> Option<IpNet> {
    let len = u8::try_from(bits.checked_sub(SourceRange::<F>::SERVICE_BITS)?).ok()?;
    IpNet::new(F::to_ip(&source.addr), len).ok()
}

impl Services {
    /// Records the owned frontends and filter bits that were taken over.
    pub(super) fn adopt(&mut self) {
        for (name, state) in &self.ports {
            for (owned, flags) in state.frontends.iter() {
                let owners = self.owned_frontends.entry(*owned).or_insert_with(|| {
                    self.owned_by_family[owned.family() as usize] += 1;
                    VecDeque::with_capacity(1)
                });
                owners.push_back(name.clone());
                self.shared.add_fingerprints(owned, *flags);
            }
        }
    }

    /// Sets the state of every backend to that of its sets: an agent may have been killed between publishing a set
    /// and recording the backends that joined or left it.
    pub(super) fn repair_backend_states(&self) {
        let members = self.ports.values().flat_map(|state| state.backends.values());
        let known: HashMap<u32, u16> = members
            .map(|member| (member.id.index(), BackendState::entry(member.id, member.set_policies)))
            .collect();
        let alive = &self.shared.alive;
        for index in 0..alive.len() * BackendState::PER_ELEMENT {
            let entry = known.get(&index).copied().unwrap_or(0);
            if let Some(half) = alive.half(index)
                && half.load(Ordering::Relaxed) != entry
            {
                half.store(entry, Ordering::Release);
            }
        }
    }
}

/// A name as [`PortName`]'s `Display` writes it, with protocol and family.
fn parse_name(name: &ServiceName) -> Option<PortName> {
    let text = name.as_str();
    let (namespace, rest) = text.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some(PortName {
        service: ObjectName::new(namespace, service),
        port: port.into(),
        protocol: protocol_of(name.protocol)?,
        family: if name.ip_version == 4 { IpFamily::V4 } else { IpFamily::V6 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{datapath::address::protocol_number, model::objects::Protocol};

    #[test]
    fn names_are_read_as_they_were_written() {
        for (port, protocol, family) in
            [("", Protocol::Tcp, IpFamily::V4), ("http", Protocol::Udp, IpFamily::V6)]
        {
            let name =
                PortName { service: ObjectName::new("default", "web"), port: port.into(), protocol, family };
            let version = if family == IpFamily::V4 { 4 } else { 6 };
            let value = ServiceName::new(&name.to_string(), protocol_number(protocol), version);
            assert_eq!(parse_name(&value), Some(name));
        }
    }
}
