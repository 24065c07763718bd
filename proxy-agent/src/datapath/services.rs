//! Brings service ports into the maps: writes only the differences, in an order that is safe for concurrent readers.
//!
//! New endpoints of a known port cost no system call: slots are written to unused room, then one store publishes
//! them. Released ids and slots are put in quarantine until no reader can use them any more.
//!
//! * [`port`]: the state of a service port.
//! * [`family`]: frontends, slots and source prefixes of a family.
//! * [`shared`]: the state that both families share.
//! * [`frontend_owners`]: which service port a frontend leads to.
//! * [`error`]: why something is not in them.
//! * [`records`]: which service port or backend has which id, for an agent with other maps.
//! * [`grown`]: moves to larger maps.
//! * [`restore`]: an earlier agent's state.

pub mod error;
mod family;
mod frontend_owners;
mod grown;
mod port;
mod records;
mod restore;
mod shared;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::atomic::Ordering,
    time::Instant,
};

use ipnet::IpNet;
use proxy_common::{
    V4, V6,
    layout::{
        backend::BackendState,
        backend_id::BackendId,
        id::Id,
        maps::table,
        name::ServiceName,
        set::{BackendSet, SetPolicy},
    },
};

use self::{
    error::{Cause, Result, WriteError},
    family::{FamilyMaps, FamilyTables},
    grown::{room_for_backend_ids, room_for_service_ids},
    port::{OwnedFrontend, PortState},
    restore::Restored,
    shared::Shared,
};
use super::{
    array::MmapArray, filter::VipFilter, ids::Ids, maps, pins::Pins, room::Part, slices::Slice, table::Table,
};
use crate::model::{
    objects::Protocol,
    plan::{IpFamily, PortName, PortPlan},
};
use crate::sorted::SortedMap;

/// Something that readers may still use.
#[derive(Debug)]
pub enum Freed {
    /// Slots of a family.
    Slots(IpFamily, (u32, u32)),
    /// A backend's id.
    Backend(Id),
    /// A service port's id.
    Service(Id),
}

impl Freed {
    /// How many slots or ids it is.
    pub fn amount(&self) -> usize {
        match self {
            Self::Slots(_, (_, count)) => *count as usize,
            Self::Backend(_) | Self::Service(_) => 1,
        }
    }
}

/// A UDP frontend that a service port had, and has no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LostFrontend {
    /// The service port that had it.
    pub service: Id,
    /// Its address; the unspecified one stands for all nodePort addresses of the node.
    pub address: SocketAddr,
}

/// The open maps of services.
pub(super) struct Maps {
    v4: FamilyTables<V4>,
    v6: FamilyTables<V6>,
    names: Box<dyn Table<u32, ServiceName>>,
    sets: MmapArray<BackendSet>,
    alive: MmapArray<BackendState>,
    filter: MmapArray<u64>,
    records: MmapArray<BackendId>,
}

impl Maps {
    pub(super) fn open(pins: &Pins) -> anyhow::Result<Self> {
        Ok(Self {
            v4: FamilyTables::open(pins)?,
            v6: FamilyTables::open(pins)?,
            names: Box::new(maps::hash::<table::ServiceNames>(pins)?),
            sets: maps::mmap::<table::BackendSets>(pins)?,
            alive: maps::mmap::<table::BackendStates>(pins)?,
            filter: maps::mmap::<table::VipFilter>(pins)?,
            records: maps::mmap::<table::BackendIds>(pins)?,
        })
    }
}

/// The maps of services, and their entries.
pub struct Services {
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
    shared: Shared,
    ports: HashMap<PortName, PortState>,
    /// The service ports that want a frontend, the owner first.
    owned_frontends: HashMap<OwnedFrontend, VecDeque<PortName>>,
    /// Frontends that Services wait for and others have; some may be free by now.
    contested: BTreeSet<OwnedFrontend>,
    /// Frontends of IPv4 and IPv6 that are claimed.
    owned_by_family: [usize; 2],
}

/// How full the maps are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Service ports (per family and protocol).
    pub service_ports: u32,
    /// Endpoints of service ports.
    pub backends: u32,
    /// Slots of IPv4 and IPv6.
    pub slots: [u32; 2],
    /// Frontends, and cluster IPs as such.
    pub frontends: usize,
}

impl Services {
    /// Takes over an earlier agent's entries in the maps. Writes only what that agent did not finish.
    pub(super) fn restore(maps: Maps, generation: u8) -> anyhow::Result<Self> {
        let mut restored = Restored::read(&maps)?;
        let ports = std::mem::take(&mut restored.ports);
        let slices = |family: IpFamily| {
            let of_family = ports.iter().filter(move |(name, _)| name.family == family);
            of_family.flat_map(|(_, state)| state.slices())
        };
        let (v4, v6) = (slices(IpFamily::V4), slices(IpFamily::V6));
        let (v4, v6) = (FamilyMaps::new(maps.v4, v4), FamilyMaps::new(maps.v6, v6));
        let Maps { sets, alive, filter, names, records, .. } = maps;
        let of_services = ports.values().map(|state| state.id);
        let service_ids = Ids::new(room_for_service_ids(&sets, &*names), generation, of_services);
        let of_backends = ports.values().flat_map(|state| state.backends.values().map(|member| member.id));
        let backend_ids = Ids::new(room_for_backend_ids(&alive, &records), generation, of_backends);
        let shared = Shared {
            filter: VipFilter::new(filter),
            names,
            sets,
            alive,
            records,
            service_ids,
            backend_ids,
            node_addresses: BTreeSet::new(),
            snat_sources: BTreeSet::new(),
            quarantine: Vec::new(),
            released_backends: Vec::new(),
            lost: Vec::new(),
        };
        let mut services = Self {
            v4,
            v6,
            shared,
            ports,
            owned_frontends: HashMap::new(),
            contested: BTreeSet::new(),
            owned_by_family: [0; 2],
        };
        services.adopt();
        services.repair_backend_states();
        services.repair_records();
        restored.remove_stale_entries(&mut services);
        Ok(services)
    }

    /// Names of the service ports in the maps.
    pub fn port_names(&self) -> impl Iterator<Item = &PortName> {
        self.ports.keys()
    }

    /// How full the maps are.
    pub fn usage(&self) -> Usage {
        Usage {
            service_ports: self.shared.service_ids.used(),
            backends: self.shared.backend_ids.used(),
            slots: [self.v4.slices.used(), self.v6.slices.used()],
            frontends: self.owned_frontends.len(),
        }
    }

    /// Brings one service port into the maps. Costs as much as the difference from before.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses a write. The previous state keeps working, except that denied clients are kept out in any
    /// case.
    pub fn apply(&mut self, plan: &PortPlan) -> Result<()> {
        let context =
            |error: WriteError| error.during(format_args!("service {} ({})", plan.name, plan.name.protocol));
        self.require_flows(plan).map_err(context)?;
        let mut state = match self.ports.remove(&plan.name) {
            Some(state) => state,
            None => {
                let id = self.shared.service_ids.take().ok_or(Cause::Full(Part::ServicePorts));
                PortState { id: id.map_err(|full| context(full.into()))?, ..PortState::default() }
            }
        };
        let result = self.apply_to(&mut state, plan);
        self.ports.insert(plan.name.clone(), state);
        result.map_err(context)
    }

    fn apply_to(&mut self, state: &mut PortState, plan: &PortPlan) -> Result<()> {
        if !state.is_named {
            self.shared.name(state.id, &plan.name)?;
            state.is_named = true;
        }
        let frontends = port::owned_frontends(plan);
        let sources = plan.sources.iter().flatten().map(IpNet::trunc);
        let sources: BTreeSet<IpNet> =
            sources.filter(|net| IpFamily::of(&net.addr()) == plan.name.family).collect();
        // The ranges of allowed clients are written before the frontend that requires them, if they fit. The
        // frontend requires them in any case.
        let mut allowed = self.allow_ranges(state, &sources);
        self.close_frontends(&plan.name, state, &frontends)?;
        let asks = plan.sources.is_some();
        if asks {
            self.deny_ranges(&plan.name, state, &sources)?;
        }
        if allowed.is_err() {
            // There may be room now.
            allowed = self.allow_ranges(state, &sources);
        }
        match plan.name.family {
            IpFamily::V4 => self.v4.endpoints(&mut self.shared, state, plan)?,
            IpFamily::V6 => self.v6.endpoints(&mut self.shared, state, plan)?,
        }
        self.open_frontends(&plan.name, state, &frontends)?;
        if !asks {
            // Until no frontend requires it any more.
            self.deny_ranges(&plan.name, state, &sources)?;
        }
        allowed
    }

    /// Allows clients of these ranges; if not all of them fit, none that were not allowed before, so that others find room.
    fn allow_ranges(&mut self, state: &mut PortState, ranges: &BTreeSet<IpNet>) -> Result<()> {
        let new: Vec<IpNet> = ranges.difference(&state.sources).copied().collect();
        for (done, clients) in new.iter().enumerate() {
            let Err(error) = self.allow(state.id, clients) else {
                state.sources.insert(*clients);
                continue;
            };
            for clients in &new[..done] {
                // A range that cannot be removed again stays allowed.
                if self.deny(state.id, clients).is_ok() {
                    state.sources.remove(clients);
                }
            }
            let (out, all) = (new.len(), ranges.len());
            return Err(error.during(format_args!("clients in {out} of {all} source ranges are kept out")));
        }
        Ok(())
    }

    /// Denies clients outside of these ranges; where that fails, every client outside the cluster.
    fn deny_ranges(
        &mut self,
        name: &PortName,
        state: &mut PortState,
        ranges: &BTreeSet<IpNet>,
    ) -> Result<()> {
        let mut result = Ok(());
        let stale: Vec<IpNet> = state.sources.difference(ranges).copied().collect();
        for clients in stale {
            match self.deny(state.id, &clients) {
                Ok(()) => drop(state.sources.remove(&clients)),
                Err(error) => {
                    self.shared.withhold(name.family, state, &[SetPolicy::External, SetPolicy::Cluster]);
                    result = Err(error);
                }
            }
        }
        result
    }

    /// Removes a service port.
    ///
    /// # Errors
    /// The last write that the kernel refused. If it was that of a frontend, the port still exists, with its endpoints removed from the
    /// sets of the frontend's clients: to be tried again.
    pub fn remove(&mut self, name: &PortName) -> Result<()> {
        let Some(mut state) = self.ports.remove(name) else { return Ok(()) };
        let context = |error: WriteError| {
            error.during(format_args!("cannot remove the service {name} ({})", name.protocol))
        };
        // Frontends first: no new packet finds the port any more.
        if let Err(error) = self.close_frontends(name, &mut state, &SortedMap::default()) {
            // Its id must not become another port's while a frontend leads to it.
            self.ports.insert(name.clone(), state);
            return Err(context(error));
        }
        let mut result = Ok(());
        let shared = &mut self.shared;
        for set_policy in SetPolicy::ALL {
            shared.sets.publish(BackendSet::index(state.id, set_policy), BackendSet::EMPTY.0);
        }
        shared.sets.publish(BackendSet::affinity_index(state.id), 0);
        for (endpoint, member) in state.backends.iter() {
            shared.release_backend(name, *endpoint, member.id);
        }
        for slice in state.slices() {
            shared.quarantine.push(Freed::Slots(name.family, (slice.base, slice.len)));
        }
        for clients in &state.sources {
            result = self.deny(state.id, clients).and(result);
        }
        let shared = &mut self.shared;
        result = shared.names.remove(&state.id.0).map_err(|error| Cause::Kernel(error).into()).and(result);
        shared.quarantine.push(Freed::Service(state.id));
        result.map_err(context)
    }

    fn allow(&mut self, id: Id, clients: &IpNet) -> Result<()> {
        match IpFamily::of(&clients.addr()) {
            IpFamily::V4 => self.v4.allow(id, clients),
            IpFamily::V6 => self.v6.allow(id, clients),
        }
    }

    fn deny(&mut self, id: Id, clients: &IpNet) -> Result<()> {
        match IpFamily::of(&clients.addr()) {
            IpFamily::V4 => self.v4.deny(id, clients),
            IpFamily::V6 => self.v6.deny(id, clients),
        }
    }

    /// Backends that stopped serving since the last call: sockets that are connected to them should be ended. Without
    /// those that came back meanwhile, as when a Service is deleted and created again: sockets can keep using them.
    pub fn take_dead(&mut self) -> Vec<(Protocol, Id)> {
        let mut released_backends = std::mem::take(&mut self.shared.released_backends);
        released_backends.retain(|(name, endpoint, _)| {
            self.ports.get(name).is_none_or(|state| !state.backends.contains_key(endpoint))
        });
        released_backends.into_iter().map(|(name, _, id)| (name.protocol, id)).collect()
    }

    /// Whether the backend with this id serves.
    pub fn is_served(&self, backend: Id) -> bool {
        let element = self.shared.alive.word(BackendState::position(backend).0);
        element.is_some_and(|word| BackendState(word.load(Ordering::Acquire)).holds(backend))
    }

    /// Releases an earlier agent's bits in the filter for addresses and services that no longer exist: like the bits of
    /// frontends that go, they stay for an hour.
    pub fn release_stale_filter_bits(&mut self) {
        self.shared.filter.release_unowned();
    }

    /// Clears filter bits of frontends that are gone for an hour: until then their established connections live on. To
    /// be called now and then; bits that were released since the last call count as released `now`.
    pub fn expire_filter_bits(&mut self, now: Instant) {
        self.shared.filter.expire(now);
    }

    /// Takes the freed ids and slots that wait for their readers.
    pub fn take_quarantine(&mut self) -> Vec<Freed> {
        std::mem::take(&mut self.shared.quarantine)
    }

    /// Makes quarantined ids and slots available again.
    pub fn give_back(&mut self, freed: Vec<Freed>) {
        for freed in freed {
            match freed {
                Freed::Slots(IpFamily::V4, (base, len)) => self.v4.slices.give_back(Slice { base, len }),
                Freed::Slots(IpFamily::V6, (base, len)) => self.v6.slices.give_back(Slice { base, len }),
                Freed::Backend(id) => self.shared.backend_ids.give_back(id),
                Freed::Service(id) => self.shared.service_ids.give_back(id),
            }
        }
    }
}

#[cfg(test)]
mod tests;
