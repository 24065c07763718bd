//! The tables for packets.

use core::cell::Cell;
use std::{boxed::Box, rc::Rc};

use crate::decide::tables::{
    Attempt, Claim, Fragmentable, Inserted, NodeAddress, Route, RouteKind, Step, Tables,
};
use crate::decide::{flow, verdict::DropReason};
use crate::{
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::Backend,
        config::Settings,
        counter::Counter,
        device::Device,
        filter::{self},
        flow::{Flow, FlowDraft, FlowKey, Tuple},
        fragment::{FragmentKey, FragmentPorts},
        frontend::{FrontendKey, Target},
        id::Id,
        outbound::Outbound,
        reply_filter,
        set::{BackendSet, SetPolicy},
    },
    packet::Packet,
};

use super::{MemoryAffinity, MemoryFamily, MemoryFlow, MemoryTables, entries::found};
use crate::decide::{FlowTables, NodeTables, PacketContext, ServiceTables};

impl<F: MemoryFamily> ServiceTables<F> for MemoryTables<F> {
    type Affinity = MemoryAffinity<F>;

    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        self.filter.contains(&filter::of_address::<F>(addr))
            || self.filter.contains(&filter::of_frontend::<F>(addr, port, protocol))
    }

    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target> {
        self.frontends.get(key).copied()
    }

    fn set(&self, service: Id, set_policy: SetPolicy) -> BackendSet {
        self.sets.get(&BackendSet::index(service, set_policy)).copied().unwrap_or(BackendSet::EMPTY)
    }

    fn backend(&self, slot: u32) -> Option<&Backend<F>> {
        self.backends.get(slot as usize)
    }

    fn is_alive(&self, backend: Id) -> bool {
        self.alive.contains(&backend)
    }

    fn is_member(&self, backend: Id, set_policy: SetPolicy) -> bool {
        self.alive.contains(&backend) && self.members.contains(&(backend, set_policy.bit()))
    }

    fn affinity_timeout(&self, service: Id) -> u32 {
        self.affinity_timeouts.get(&service).copied().unwrap_or(0)
    }

    fn affinity(&self, key: &AffinityKey<F>) -> Option<MemoryAffinity<F>> {
        let entry = Rc::clone(self.affinity.borrow().get(key)?);
        Some(MemoryAffinity { seen: entry.get(), entry })
    }

    fn remember_affinity(&self, key: &AffinityKey<F>, affinity: &Affinity<F>) {
        self.affinity.borrow_mut().insert(*key, Rc::new(Cell::new(*affinity)));
    }

    fn allows_source(&self, service: Id, addr: &F::Addr) -> bool {
        self.sources.contains(&(service, *addr))
    }

    fn is_service_address(&self, addr: &F::Addr) -> bool {
        self.service_addresses.contains(addr)
    }
}

impl<F: MemoryFamily> FlowTables<F> for MemoryTables<F> {
    type Flow = MemoryFlow<F>;
    type FlowDraft = Box<FlowDraft<F>>;

    fn draft(&self) -> Option<Box<FlowDraft<F>>> {
        Some(Box::default())
    }

    fn flow(&self, key: &FlowKey<F>) -> Option<MemoryFlow<F>> {
        found(&self.flows, key)
    }

    fn may_be_filtered_reply(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        self.reply_filter.borrow().contains(&reply_filter::Fingerprint::of::<F>(addr, port, protocol))
    }

    fn insert_reply(&self, addr: &F::Addr, port: u16, protocol: u8) {
        self.reply_filter.borrow_mut().insert(reply_filter::Fingerprint::of::<F>(addr, port, protocol));
    }

    fn replace_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        self.replace(&self.flows, key, flow)
    }

    fn remove_flow(&self, key: &FlowKey<F>) {
        self.flows.borrow_mut().remove(key);
    }

    fn pending(&self, key: &FlowKey<F>) -> Option<MemoryFlow<F>> {
        let found = found(&self.pending, key);
        if found.is_none() {
            self.flows.borrow_mut().extend(self.arriving.borrow_mut().drain());
        }
        found
    }

    fn insert_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Inserted {
        if self.pending.borrow().contains_key(key) {
            Inserted::Exists
        } else if self.replace_pending(key, flow) {
            Inserted::Yes
        } else {
            Inserted::NoRoom
        }
    }

    fn replace_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        self.replace(&self.pending, key, flow)
    }

    fn remove_pending(&self, key: &FlowKey<F>) {
        self.pending.borrow_mut().remove(key);
    }

    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound> {
        self.outbound.borrow().get(key).copied()
    }

    fn remember_outbound(&self, key: &FlowKey<F>, outbound: &Outbound) {
        self.outbound.borrow_mut().insert(*key, *outbound);
    }

    fn fragment(&self, key: &FragmentKey<F>) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey<F>, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }
}

impl<F: MemoryFamily> NodeTables<F> for MemoryTables<F> {
    type CachedRoute = Box<Route<F>>;

    fn node_address(&self, addr: &F::Addr) -> NodeAddress {
        self.node_addresses.get(addr).copied().unwrap_or_default()
    }

    fn device(&self, ifindex: u32) -> Option<&Device> {
        self.devices.get(&ifindex)
    }

    fn snat_source(&self, index: u32) -> Option<F::Addr> {
        self.snat_sources.get(index as usize).copied()
    }

    fn may_be_snat_source(&self, addr: &F::Addr) -> bool {
        self.filter.contains(&filter::of_snat_source::<F>(addr))
    }

    fn route(&self, _ifindex: u32, _src: &F::Addr, dst: &F::Addr, size: u32, route: &mut Route<F>) {
        *route = self.routes.get(dst).copied().unwrap_or(self.default_route);
        if route.mtu != 0 && size > route.mtu {
            route.kind = RouteKind::TooBig;
        }
    }

    fn cached_route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32) -> Option<Box<Route<F>>> {
        let mut route = Route::default();
        self.route(ifindex, src, dst, size, &mut route);
        Some(Box::new(route))
    }

    fn preferred_source(
        &self,
        _ifindex: u32,
        _src: &F::Addr,
        dst: &F::Addr,
        preferred: &mut F::Addr,
    ) -> bool {
        self.preferred_sources.get(dst).map(|known| *preferred = *known).is_some()
    }

    fn recent_source(&self, ifindex: u32, dst: &F::Addr, source: &mut F::Addr) -> bool {
        let sources = self.recent_sources.borrow();
        sources.get(&(ifindex, *dst)).map(|recent| *source = *recent).is_some()
    }

    fn remember_source(&self, ifindex: u32, dst: &F::Addr, source: &F::Addr) {
        if self.remembers_sources {
            self.recent_sources.borrow_mut().insert((ifindex, *dst), *source);
        }
    }

    fn has_socket(&self, tuple: &Tuple<F>, protocol: u8) -> bool {
        self.listening.contains(&(tuple.dst, tuple.dport, protocol))
    }

    fn has_connection(&self, namespace: u32, tuple: &Tuple<F>, protocol: u8) -> bool {
        self.connections.contains(&(namespace, *tuple, protocol))
    }

    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool {
        *addr = F::snat_address(device);
        !F::same(addr, &F::UNSPECIFIED)
    }
}

impl<F: MemoryFamily> PacketContext<F> for MemoryTables<F> {
    fn came_in(&self) -> u32 {
        self.came_in.get()
    }

    fn leaves(&self) -> u32 {
        self.leaves.get()
    }

    fn acknowledgment(&self, packet: &Packet<F>) -> u32 {
        packet.acknowledgment
    }

    fn timestamp(&self, _packet: &Packet<F>) -> u32 {
        self.timestamp.get()
    }

    fn size(&self, _packet: &Packet<F>) -> u32 {
        self.size.get()
    }

    fn fragmentable(&self, _packet: &Packet<F>) -> Fragmentable {
        self.fragmentable.get()
    }
}

impl<F: MemoryFamily> Tables<F> for MemoryTables<F> {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn open_flow(&self, draft: &mut FlowDraft<F>) -> Option<DropReason> {
        flow::open(self, draft)
    }

    fn attempt(&self, draft: &mut FlowDraft<F>, claim: Claim) -> Attempt {
        flow::attempt(self, draft, claim)
    }

    fn confirm_flow(&self, draft: &mut FlowDraft<F>) -> bool {
        flow::confirm(self, draft)
    }

    fn random(&self) -> u32 {
        if let Some(fixed) = self.fixed_random.get() {
            return fixed;
        }
        // Knuth's MMIX generator; its upper half is more random.
        let next =
            self.random.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.random.set(next);
        (next >> 32) as u32
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn count(&self, counter: Counter) {
        *self.counts.borrow_mut().entry(counter).or_default() += 1;
    }

    fn step(&self, step: Step<F>) {
        self.steps.borrow_mut().push(step);
    }
}
