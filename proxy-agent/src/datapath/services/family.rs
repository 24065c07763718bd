//! One family's own maps: frontends and slots.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context as _, Result, bail};
use proxy_common::layout::{
    backend::Backend,
    frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, Frontend as FrontendValue, FrontendKey, Target},
    id::Id,
    set::{Set, SetKind, SetRole},
};

use super::{Freed, PortState, SetState, shared::Shared};
use crate::{
    datapath::{
        address::protocol_number,
        array::MmapArray,
        maps::{self, Hash, MapFamily},
        pins::Pins,
        slices::{Slice, Slices},
    },
    model::plan::{Frontend, PortName, PortPlan},
};

/// One family's own maps.
pub(super) struct FamilyMaps<F: MapFamily> {
    pub(super) frontends: Hash<FrontendKey<F>, FrontendValue<F>>,
    backends: MmapArray<Backend<F>>,
    pub(super) slices: Slices,
}

impl<F: MapFamily> FamilyMaps<F> {
    pub(super) fn open(pins: &Pins, used: impl Iterator<Item = Slice>) -> Result<Self> {
        let backends: MmapArray<Backend<F>> = maps::mmap(pins, &format!("backends_{}", F::SUFFIX))?;
        let slices = Slices::new(backends.len(), used);
        Ok(Self { frontends: F::frontends(pins)?, backends, slices })
    }

    /// Publishes a port's endpoints, if they differ.
    pub(super) fn endpoints(
        &mut self,
        shared: &mut Shared,
        state: &mut PortState,
        plan: &PortPlan,
    ) -> Result<()> {
        let wanted = [&plan.internal, &plan.external, &plan.cluster];
        if state.sets.iter().zip(wanted).all(|(set, wanted)| *set.endpoints == **wanted) {
            return Ok(());
        }
        let endpoints: BTreeSet<SocketAddr> = wanted.into_iter().flatten().copied().collect();
        let born: Vec<SocketAddr> =
            endpoints.iter().filter(|endpoint| !state.backends.contains_key(endpoint)).copied().collect();
        for endpoint in &born {
            match shared.birth() {
                Some(id) => state.backends.insert(*endpoint, id),
                None => {
                    shared.unborn(state, &born);
                    bail!("no room for another backend");
                }
            };
        }
        // All slices are made before any is published: when there is no room, everything stays as it was.
        let before = state.slices();
        let Some(sets) = self.make_sets(state, wanted) else {
            shared.unborn(state, &born);
            bail!("no room for {} endpoints in a row", endpoints.len());
        };
        for (role, set) in SetRole::ALL.into_iter().zip(&sets) {
            let word = Set::new(set.slice.base, set.slice.len, SetKind::Uniform).0;
            shared.sets.publish(Set::index(state.id, role), word);
        }
        state.sets = sets;
        for slice in before.difference(&state.slices()) {
            shared.quarantine.push(Freed::Slots(F::FAMILY, (slice.base, slice.len)));
        }
        state.backends.retain(|endpoint, id| {
            let keep = endpoints.contains(endpoint);
            if !keep {
                shared.bury(*id);
            }
            keep
        });
        Ok(())
    }

    /// The sets for these endpoints: slices that hold them already, or new ones. `None` if there is no room.
    pub(super) fn make_sets(
        &mut self,
        state: &PortState,
        wanted: [&Vec<SocketAddr>; 3],
    ) -> Option<[SetState; 3]> {
        let mut made: Vec<SetState> = Vec::with_capacity(wanted.len());
        let mut new: Vec<Slice> = Vec::new();
        for endpoints in wanted {
            let known = made.iter().chain(&state.sets).find(|set| *set.endpoints == **endpoints);
            let set = match known {
                Some(set) => set.clone(),
                None => {
                    let Some(slice) = self.slices.take(endpoints.len() as u32) else {
                        // Nobody has seen them.
                        new.into_iter().for_each(|slice| self.slices.give_back(slice));
                        return None;
                    };
                    new.push(slice);
                    self.write_slots(slice, endpoints, state);
                    SetState { slice, endpoints: endpoints.as_slice().into() }
                }
            };
            made.push(set);
        }
        made.try_into().ok()
    }

    pub(super) fn write_slots(&mut self, slice: Slice, endpoints: &[SocketAddr], state: &PortState) {
        for (slot, endpoint) in (slice.base..).zip(endpoints) {
            if let (Some(addr), Some(id)) = (F::from_ip(endpoint.ip()), state.backends.get(endpoint)) {
                self.backends.write(slot, Backend::new(addr, endpoint.port().to_be(), *id));
            }
        }
    }

    pub(super) fn key(name: &PortName, frontend: Frontend) -> Result<(FrontendKey<F>, u32)> {
        let protocol = protocol_number(name.protocol);
        let addr = |ip| F::from_ip(ip).with_context(|| format!("{ip} is of the other family"));
        let at = |address: SocketAddr| {
            Ok::<_, anyhow::Error>(FrontendKey::new(addr(address.ip())?, address.port().to_be(), protocol))
        };
        Ok(match frontend {
            Frontend::ClusterIp(address) => (at(address)?, FRONTEND_CLUSTER_IP),
            Frontend::ClusterAddress(ip) => {
                (FrontendKey::of_address(addr(ip)?), FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS)
            }
            Frontend::ExternalIp(address) | Frontend::LoadBalancer(address) => (at(address)?, 0),
            Frontend::NodePort(port) => (FrontendKey::new(F::UNSPECIFIED, port.to_be(), protocol), 0),
        })
    }

    pub(super) fn write_frontend(&mut self, name: &PortName, id: Id, frontend: Frontend) -> Result<()> {
        let (key, flags) = Self::key(name, frontend)?;
        let target = Target::new(id, flags).context("a service port without id")?;
        self.frontends
            .insert(key, FrontendValue::new(key, target), 0)
            .with_context(|| format!("cannot write the frontend {frontend:?}"))
    }

    pub(super) fn remove_frontend(&mut self, name: &PortName, frontend: Frontend) -> Result<()> {
        let (key, _) = Self::key(name, frontend)?;
        self.frontends.remove(&key).with_context(|| format!("cannot remove the frontend {frontend:?}"))
    }
}
