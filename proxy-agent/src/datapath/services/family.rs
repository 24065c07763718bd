//! One family's own maps: frontends, slots and source prefixes.

use std::{net::SocketAddr, sync::Arc};

use ipnet::IpNet;
use proxy_common::layout::{
    backend::{BACKEND_LOCAL, BACKEND_REMOTE, Backend},
    frontend::{Frontend as FrontendValue, FrontendKey, Target},
    id::Id,
    maps::table,
    set::{BackendSet, BackendSetKind, SetPolicy},
    source_range::SourceRange,
};

use super::{
    Freed,
    error::{Cause, Result, WriteError},
    port::{OwnedFrontend, POLICIES, PortState, SetState},
    shared::Shared,
};
use crate::{
    clock,
    datapath::{
        array::MmapArray,
        maps::{self, MapFamily},
        pins::Pins,
        room::Part,
        sizes::has_flows,
        slices::{Slice, Slices},
        table::{SourcePrefix, Table},
    },
    model::plan::{Endpoints, Place, PortPlan},
    sorted::SortedMap,
};

/// The open maps of one family.
pub(super) struct FamilyTables<F: MapFamily> {
    pub(super) frontends: Box<dyn Table<FrontendKey<F>, FrontendValue<F>>>,
    pub(super) sources: Box<dyn Table<SourcePrefix<F>, u32>>,
    pub(super) backends: MmapArray<Backend<F>>,
    /// Whether the maps of flows have room for more than one: [`Part::Flows`].
    pub(super) has_flows: bool,
}

impl<F: MapFamily> FamilyTables<F> {
    pub(super) fn open(pins: &Pins) -> anyhow::Result<Self> {
        Ok(Self {
            frontends: Box::new(maps::hash::<table::Frontends<F>>(pins)?),
            sources: Box::new(F::source_ranges(pins)?),
            backends: maps::mmap::<table::Backends<F>>(pins)?,
            has_flows: has_flows(pins, F::FAMILY),
        })
    }
}

/// One family's own maps, and the room in them.
pub(super) struct FamilyMaps<F: MapFamily> {
    pub(super) tables: FamilyTables<F>,
    pub(super) slices: Slices,
}

impl<F: MapFamily> FamilyMaps<F> {
    pub(super) fn new(tables: FamilyTables<F>, used: impl Iterator<Item = Slice>) -> Self {
        let slices = Slices::new(tables.backends.len(), used);
        Self { tables, slices }
    }

    /// Publishes a port's endpoints, if they differ. If they do not fit, the published set stays, except where a traffic policy
    /// no longer allows it: an empty set is better than another node's endpoints.
    pub(super) fn endpoints(
        &mut self,
        shared: &mut Shared,
        state: &mut PortState,
        plan: &PortPlan,
    ) -> Result<()> {
        let result = self.publish(shared, state, plan);
        if result.is_err() {
            let set_policies: Vec<SetPolicy> =
                [(SetPolicy::ClusterIp, &plan.internal), (SetPolicy::External, &plan.external)]
                    .into_iter()
                    .filter(|(set_policy, allowed)| {
                        let published = &state.sets[*set_policy as usize].endpoints;
                        published
                            .iter()
                            .any(|endpoint| !allowed.contains(endpoint) && plan.cluster.contains(endpoint))
                    })
                    .map(|(set_policy, _)| set_policy)
                    .collect();
            shared.withhold(F::FAMILY, state, &set_policies);
        }
        result
    }

    fn publish(&mut self, shared: &mut Shared, state: &mut PortState, plan: &PortPlan) -> Result<()> {
        let affinity = affinity_timeout(plan);
        if state.affinity == affinity && !state.has_strays && is_published(state, plan) {
            // Equal lists are kept once.
            for (set, endpoints) in state.sets.iter_mut().zip(lists(plan)) {
                set.endpoints = Arc::clone(endpoints);
            }
            self.place(state, plan);
            return Ok(());
        }
        let members = members(plan);
        let mut allocated = Vec::new();
        for (endpoint, set_policies) in
            members.iter().filter(|(endpoint, _)| !state.backends.contains_key(*endpoint))
        {
            allocated.push((*endpoint, *set_policies));
        }
        for (endpoint, set_policies) in &allocated {
            match shared.allocate_backend(state.id, *endpoint, *set_policies) {
                Some(member) => state.backends.insert(*endpoint, member),
                None => {
                    shared.roll_back_backends(&plan.name, state, &allocated);
                    return Err(Cause::Full(Part::Backends).into());
                }
            };
        }
        // All slices are allocated before any is published: if they do not fit, nothing changes.
        let before = state.slices();
        let Some(sets) = self.make_sets(state, plan) else {
            shared.roll_back_backends(&plan.name, state, &allocated);
            let full = WriteError::from(Cause::Full(Part::Slots(F::FAMILY)));
            return Err(full.during(format_args!("{} endpoints want slots in a row", plan.serving.len())));
        };
        // Slices that stay.
        self.place(state, plan);
        // Every backend of a published set is recorded as a member before it is published, and until after it is withdrawn.
        for (endpoint, member) in state.backends.iter_mut() {
            shared.put_set_policies(member, member.set_policies | members.get(endpoint).unwrap_or(&0));
        }
        if state.affinity != affinity {
            shared.sets.publish(BackendSet::affinity_index(state.id), affinity.into());
            state.affinity = affinity;
        }
        for (set_policy, (old, new)) in SetPolicy::ALL.into_iter().zip(state.sets.iter().zip(&sets)) {
            if old.set != new.set {
                shared.sets.publish(BackendSet::index(state.id, set_policy), new.set.0);
            }
        }
        state.sets = sets;
        let now = state.slices();
        for slice in before.iter().filter(|slice| !now.contains(slice)) {
            shared.quarantine.push(Freed::Slots(F::FAMILY, (slice.base, slice.len)));
        }
        state.backends.retain(|endpoint, member| match members.get(endpoint) {
            Some(set_policies) => {
                shared.put_set_policies(member, *set_policies);
                true
            }
            None => {
                shared.release_backend(&plan.name, *endpoint, member.id);
                false
            }
        });
        state.has_strays = false;
        Ok(())
    }

    /// The sets for a plan: slices that hold the endpoints already, or new ones. `None` if they do not fit.
    fn make_sets(&mut self, state: &PortState, plan: &PortPlan) -> Option<[SetState; POLICIES]> {
        let mut made: Vec<SetState> = Vec::with_capacity(POLICIES);
        let mut new: Vec<Slice> = Vec::new();
        for (set_policy, endpoints) in SetPolicy::ALL.into_iter().zip(lists(plan)) {
            let known = made.iter().chain(&state.sets).find(|set| *set.endpoints == **endpoints);
            let slice = match known {
                Some(set) => set.slice(),
                None => {
                    let Some(slice) = self.slices.take(endpoints.len() as u32) else {
                        // No reader has seen them.
                        new.into_iter().for_each(|slice| self.slices.give_back(slice));
                        return None;
                    };
                    new.push(slice);
                    self.write_slots(slice, endpoints, state, plan);
                    slice
                }
            };
            made.push(SetState { set: set(set_policy, slice, plan), endpoints: Arc::clone(endpoints) });
        }
        made.try_into().ok()
    }

    fn write_slots(&mut self, slice: Slice, endpoints: &[SocketAddr], state: &PortState, plan: &PortPlan) {
        for (slot, endpoint) in (slice.base..).zip(endpoints) {
            if let (Some(addr), Some(member)) = (F::from_ip(endpoint.ip()), state.backends.get(endpoint)) {
                let backend = Backend::new(addr, endpoint.port().to_be(), member.id);
                self.tables.backends.write(slot, backend.with_flags(flags(plan, endpoint)));
            }
        }
    }

    /// Updates in the published slots where endpoints run, if that has changed. Readers may see it before or after: everything else in a
    /// slot stays unchanged.
    fn place(&mut self, state: &mut PortState, plan: &PortPlan) {
        if state.places.as_ref() == Some(&plan.places) {
            return;
        }
        for set in &state.sets {
            for (slot, endpoint) in (set.set.base()..).zip(set.endpoints.iter()) {
                let flags = flags(plan, endpoint);
                if let Some(backend) = self.tables.backends.read(slot)
                    && backend.flags != flags
                {
                    self.tables.backends.write(slot, backend.with_flags(flags));
                }
            }
        }
        state.places = Some(plan.places.clone());
    }

    fn key(owned: &OwnedFrontend) -> Result<FrontendKey<F>> {
        let ip = owned.address.ip();
        let addr = F::from_ip(ip).ok_or(Cause::OtherFamily(ip))?;
        Ok(FrontendKey::new(addr, owned.address.port().to_be(), owned.protocol))
    }

    pub(super) fn write_frontend(&mut self, id: Id, owned: &OwnedFrontend, flags: u32) -> Result<()> {
        let key = Self::key(owned)?;
        let target = Target::new(id, flags).ok_or(Cause::NoId)?;
        let value = FrontendValue::new(key, target);
        self.tables.frontends.insert(key, value).map_err(|error| {
            let error = WriteError::of_write(error, Part::Frontends(F::FAMILY));
            error.during(format_args!("cannot write the frontend {owned}"))
        })
    }

    pub(super) fn remove_frontend(&mut self, owned: &OwnedFrontend) -> Result<()> {
        let key = Self::key(owned)?;
        self.tables.frontends.remove(&key).map_err(|error| {
            WriteError::from(Cause::Kernel(error)).during(format_args!("cannot remove the frontend {owned}"))
        })
    }

    /// Allows clients.
    pub(super) fn allow(&mut self, id: Id, clients: &IpNet) -> Result<()> {
        let key = source_prefix(id, clients)?;
        self.tables.sources.insert(key, 1).map_err(|error| {
            let error = WriteError::of_write(error, Part::SourceRanges(F::FAMILY));
            error.during(format_args!("cannot write the source range {clients}"))
        })
    }

    /// Denies them again.
    pub(super) fn deny(&mut self, id: Id, clients: &IpNet) -> Result<()> {
        let key = source_prefix(id, clients)?;
        self.tables.sources.remove(&key).map_err(|error| {
            let error = WriteError::from(Cause::Kernel(error));
            error.during(format_args!("cannot remove the source range {clients}"))
        })
    }
}

fn source_prefix<F: MapFamily>(service: Id, clients: &IpNet) -> Result<SourcePrefix<F>> {
    let addr = F::from_ip(clients.network()).ok_or(Cause::OtherFamily(clients.network()))?;
    Ok((SourceRange::<F>::SERVICE_BITS + u32::from(clients.prefix_len()), SourceRange { service, addr }))
}

/// The endpoints of each set, by [`SetPolicy`].
fn lists(plan: &PortPlan) -> [&Endpoints; POLICIES] {
    [&plan.internal, &plan.external, &plan.cluster, &plan.serving]
}

/// The flags of a slot: where the endpoint runs.
fn flags(plan: &PortPlan, endpoint: &SocketAddr) -> u16 {
    match plan.places.of(endpoint) {
        Place::Local => BACKEND_LOCAL,
        Place::Remote => BACKEND_REMOTE,
        Place::Unknown => 0,
    }
}

/// All endpoints, with the bits of the sets they are in.
fn members(plan: &PortPlan) -> SortedMap<SocketAddr, u8> {
    let mut members = SortedMap::default();
    // The longest list first: all others are parts of it.
    for (set_policy, endpoints) in SetPolicy::ALL.into_iter().zip(lists(plan)).rev() {
        for endpoint in endpoints.iter() {
            let known = members.get(endpoint).copied().unwrap_or(0);
            members.insert(*endpoint, known | set_policy.bit());
        }
    }
    members
}

/// The word that publishes a set.
fn set(set_policy: SetPolicy, slice: Slice, plan: &PortPlan) -> BackendSet {
    if slice.len > 0 {
        let kind =
            if plan.affinity.is_some() { BackendSetKind::SessionAffinity } else { BackendSetKind::Uniform };
        return BackendSet::new(slice.base, slice.len, kind);
    }
    let lacks_local_endpoints = match set_policy {
        SetPolicy::ClusterIp => plan.lacks_internal(),
        SetPolicy::External => plan.lacks_external(),
        SetPolicy::Cluster | SetPolicy::Serving => false,
    };
    if lacks_local_endpoints { BackendSet::NO_LOCAL_ENDPOINTS } else { BackendSet::EMPTY }
}

fn is_published(state: &PortState, plan: &PortPlan) -> bool {
    let wanted = SetPolicy::ALL.into_iter().zip(lists(plan));
    state.sets.iter().zip(wanted).all(|(known, (set_policy, endpoints))| {
        *known.endpoints == **endpoints && known.set == set(set_policy, known.slice(), plan)
    })
}

/// In jiffies; 0 without affinity.
fn affinity_timeout(plan: &PortPlan) -> u32 {
    plan.affinity.map_or(0, |timeout| clock::jiffies(timeout.as_secs().try_into().unwrap_or(u32::MAX)))
}
