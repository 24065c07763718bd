//! Brings service ports into the maps: what differs, in an order that no reader can trip over.
//!
//! New endpoints of a known port cost no system call: slots are written to unused room, then one store publishes
//! them. What was given up is put in quarantine until no reader can use it any more.

mod family;
mod restore;
mod shared;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
};

use anyhow::{Context as _, Result};
use proxy_common::{
    V4, V6,
    layout::{
        backend::Alive,
        id::Id,
        set::{Set, SetRole},
    },
};
use tracing::warn;

use self::{
    family::FamilyMaps,
    restore::Restored,
    shared::{Shared, node_port_bit},
};
use super::{
    address::protocol_number, array::MmapArray, filter::VipFilter, ids::Ids, maps, pins::Pins, slices::Slice,
};
use crate::model::plan::{Frontend, IpFamily, PortName, PortPlan};

/// A frontend of a family and protocol: what only one service port can have.
type Claim = (IpFamily, u8, Frontend);

/// What is in the maps for a service port.
#[derive(Debug, Default)]
struct PortState {
    id: Id,
    frontends: BTreeSet<Frontend>,
    /// By [`SetRole`]. Roles with the same endpoints share one slice.
    sets: [SetState; 3],
    backends: HashMap<SocketAddr, Id>,
}

/// A published slice and what is in it.
#[derive(Clone, Debug, Default)]
struct SetState {
    slice: Slice,
    endpoints: Arc<[SocketAddr]>,
}

impl PortState {
    /// The distinct slices.
    fn slices(&self) -> HashSet<Slice> {
        self.sets.iter().map(|set| set.slice).filter(|slice| slice.len > 0).collect()
    }
}

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

/// The maps of services, and what is in them.
pub struct Services {
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
    shared: Shared,
    ports: HashMap<PortName, PortState>,
    /// Who wants a frontend, the holder first.
    claims: HashMap<Claim, VecDeque<PortName>>,
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
    /// Frontends.
    pub frontends: usize,
}

impl Services {
    /// Opens the maps and takes over what an earlier agent left in them.
    pub(super) fn restore(pins: &Pins, generation: u8) -> Result<Self> {
        let mut restored = Restored::read(pins)?;
        let sets: MmapArray<Set> = maps::mmap(pins, "sets")?;
        let alive: MmapArray<Alive> = maps::mmap(pins, "alive")?;
        let ports = std::mem::take(&mut restored.ports);
        let slices = |family: IpFamily| {
            let of_family = ports.iter().filter(move |(name, _)| name.family == family);
            of_family.flat_map(|(_, state)| state.slices())
        };
        let v4 = FamilyMaps::open(pins, slices(IpFamily::V4))?;
        let v6 = FamilyMaps::open(pins, slices(IpFamily::V6))?;
        let service_ids =
            Ids::new(sets.len() / SetRole::STRIDE, generation, ports.values().map(|state| state.id));
        let backend_ids = Ids::new(
            alive.len() * Alive::PER_ELEMENT,
            generation,
            ports.values().flat_map(|state| state.backends.values().copied()),
        );
        let shared = Shared {
            filter: VipFilter::new(maps::mmap(pins, "vip_filter")?),
            names: maps::names(pins)?,
            sets,
            alive,
            service_ids,
            backend_ids,
            node_addresses: BTreeSet::new(),
            quarantine: Vec::new(),
        };
        let mut services = Self { v4, v6, shared, ports, claims: HashMap::new() };
        services.adopt();
        services.bury_strangers();
        restored.drop_orphans(&mut services);
        Ok(services)
    }

    /// Notes claims and filter bits of what was taken over.
    fn adopt(&mut self) {
        for (name, state) in &self.ports {
            for frontend in &state.frontends {
                self.claims.entry(claim(name, *frontend)).or_default().push_back(name.clone());
                self.shared.add_bits(name, *frontend);
            }
        }
    }

    /// Clears backends that no port has: an agent was killed between publishing a set and burying who left it.
    fn bury_strangers(&mut self) {
        let known: HashSet<u32> =
            self.ports.values().flat_map(|state| state.backends.values()).map(|id| id.index()).collect();
        let alive = &self.shared.alive;
        for index in 0..alive.len() * Alive::PER_ELEMENT {
            if let Some(byte) = alive.byte(index)
                && !known.contains(&index)
                && byte.load(Ordering::Relaxed) != 0
            {
                byte.store(0, Ordering::Release);
            }
        }
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
            frontends: self.claims.len(),
        }
    }

    /// Brings one service port into the maps. Costs what differs from before.
    ///
    /// # Errors
    /// When a map is full or the kernel refuses a write. What was there before keeps working.
    pub fn apply(&mut self, plan: &PortPlan) -> Result<()> {
        let mut state = match self.ports.remove(&plan.name) {
            Some(state) => state,
            None => PortState {
                id: self.shared.service_ids.take().context("no room for another service port")?,
                ..PortState::default()
            },
        };
        let result = self.apply_to(&mut state, plan);
        self.ports.insert(plan.name.clone(), state);
        result.with_context(|| format!("service {} ({})", plan.name, plan.name.protocol))
    }

    fn apply_to(&mut self, state: &mut PortState, plan: &PortPlan) -> Result<()> {
        if state.frontends.is_empty() {
            self.shared.name(state.id, &plan.name)?;
        }
        match plan.name.family {
            IpFamily::V4 => self.v4.endpoints(&mut self.shared, state, plan)?,
            IpFamily::V6 => self.v6.endpoints(&mut self.shared, state, plan)?,
        }
        let wanted: BTreeSet<Frontend> = plan.frontends.iter().copied().collect();
        let gone: Vec<Frontend> = state.frontends.difference(&wanted).copied().collect();
        for frontend in gone {
            self.release(&plan.name, frontend)?;
            state.frontends.remove(&frontend);
        }
        for frontend in wanted {
            if !state.frontends.contains(&frontend) {
                self.claim(&plan.name, state.id, frontend)?;
                state.frontends.insert(frontend);
            }
        }
        Ok(())
    }

    /// Removes a service port.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn remove(&mut self, name: &PortName) -> Result<()> {
        let Some(state) = self.ports.remove(name) else { return Ok(()) };
        // Frontends first: nobody finds the port any more, whatever becomes of the rest.
        for frontend in &state.frontends {
            self.release(name, *frontend)?;
        }
        let shared = &mut self.shared;
        for role in SetRole::ALL {
            shared.sets.publish(Set::index(state.id, role), Set::EMPTY.0);
        }
        for id in state.backends.values() {
            shared.bury(*id);
        }
        for slice in state.slices() {
            shared.quarantine.push(Freed::Slots(name.family, (slice.base, slice.len)));
        }
        shared.names.remove(&state.id.0).with_context(|| format!("cannot forget the name of {name}"))?;
        shared.quarantine.push(Freed::Service(state.id));
        Ok(())
    }

    /// Takes a frontend for a port, or queues behind who has it.
    fn claim(&mut self, name: &PortName, id: Id, frontend: Frontend) -> Result<()> {
        let claimants = self.claims.entry(claim(name, frontend)).or_default();
        if let Some(holder) = claimants.front() {
            warn!("services {holder} and {name} both want {frontend:?} {}: {holder} keeps it", name.protocol);
            claimants.push_back(name.clone());
            return Ok(());
        }
        claimants.push_back(name.clone());
        self.shared.add_bits(name, frontend);
        self.write_frontend(name, id, frontend)
    }

    /// Gives a frontend up; who waits for it gets it.
    fn release(&mut self, name: &PortName, frontend: Frontend) -> Result<()> {
        let claim = claim(name, frontend);
        let Some(claimants) = self.claims.get_mut(&claim) else { return Ok(()) };
        let was_holder = claimants.front() == Some(name);
        claimants.retain(|claimant| claimant != name);
        if !was_holder {
            return Ok(());
        }
        match claimants.front().cloned() {
            Some(next) => {
                let id = self.ports.get(&next).map(|state| state.id);
                match id {
                    Some(id) => self.write_frontend(&next, id, frontend),
                    None => Ok(()),
                }
            }
            None => {
                self.claims.remove(&claim);
                match name.family {
                    IpFamily::V4 => self.v4.remove_frontend(name, frontend)?,
                    IpFamily::V6 => self.v6.remove_frontend(name, frontend)?,
                }
                self.shared.remove_bits(name, frontend);
                Ok(())
            }
        }
    }

    fn write_frontend(&mut self, name: &PortName, id: Id, frontend: Frontend) -> Result<()> {
        match name.family {
            IpFamily::V4 => self.v4.write_frontend(name, id, frontend),
            IpFamily::V6 => self.v6.write_frontend(name, id, frontend),
        }
    }

    /// Says where nodePorts are served.
    pub(super) fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.shared.node_addresses, addresses.clone());
        let node_ports: Vec<Claim> = self
            .claims
            .keys()
            .filter(|(_, _, frontend)| matches!(frontend, Frontend::NodePort(_)))
            .copied()
            .collect();
        for (family, protocol, frontend) in node_ports {
            let Frontend::NodePort(port) = frontend else { continue };
            let bit = |ip: &IpAddr| node_port_bit(*ip, port, protocol);
            for ip in addresses.difference(&before).filter(|ip| IpFamily::of(ip) == family) {
                self.shared.filter.add(bit(ip));
            }
            for ip in before.difference(&addresses).filter(|ip| IpFamily::of(ip) == family) {
                self.shared.filter.remove(bit(ip));
            }
        }
    }

    /// Clears what an earlier agent left in the filter for addresses and services that are no more.
    pub fn drop_stale_filter_bits(&mut self) {
        self.shared.filter.drop_strangers();
    }

    /// Takes what waits for its readers to be gone.
    pub fn take_quarantine(&mut self) -> Vec<Freed> {
        std::mem::take(&mut self.shared.quarantine)
    }

    /// Gives what was in quarantine free for use.
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

fn claim(name: &PortName, frontend: Frontend) -> Claim {
    (name.family, protocol_number(name.protocol), frontend)
}
