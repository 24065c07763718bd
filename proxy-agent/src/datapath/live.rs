//! Read-only look-ups in the pinned maps: a trace makes the look-ups that the programs would make.

use std::{cell::RefCell, collections::HashMap, io};

use anyhow::{Context as _, Result};
use proxy_common::{
    Family,
    decide::NodeAddress,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::{Backend, BackendState},
        cidr::ServiceCidrs,
        device::{DEVICE_UPLINK, Device},
        flow::{Flow, FlowKey},
        frontend::{Frontend, FrontendKey},
        id::Id,
        outbound::Outbound,
        set::BackendSet,
        source_range::SourceRange,
    },
};
use proxy_sys::socket::netns_cookie;

use super::{
    maps::{self, Array, Hash, MapFamily, Trie},
    pins::Pins,
};
use crate::clock::Clock;

/// Look-ups in the maps. A missing entry gives nothing.
pub(crate) trait LiveMaps<F: Family> {
    fn filter(&self, element: u32) -> u64;
    fn frontend(&self, key: &FrontendKey<F>) -> Option<Frontend<F>>;
    fn set(&self, index: u32) -> BackendSet;
    fn backend(&self, slot: u32) -> Option<Backend<F>>;
    fn alive(&self, element: u32) -> BackendState;
    fn node_address(&self, addr: &F::Addr) -> NodeAddress;
    fn flow(&self, key: &FlowKey<F>) -> Option<Flow<F>>;
    /// A flow that is not confirmed.
    fn pending(&self, key: &FlowKey<F>) -> Option<Flow<F>>;
    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound>;
    fn snat_source(&self, index: u32) -> Option<F::Addr>;
    fn devices(&self) -> &HashMap<u32, Device>;
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity<F>>;
    /// Whether the client is in one of the service port's source ranges.
    fn is_allowed(&self, service: Id, client: &F::Addr) -> bool;
    fn service_cidrs(&self) -> ServiceCidrs<F>;
    /// Addresses of network namespaces by cookie.
    fn netns(&self) -> &HashMap<u64, F::Addr>;
    /// Cookie of the node's own network namespace; 0 if the kernel does not report it.
    fn node_netns(&self) -> u64;
    /// Jiffies, truncated.
    fn now(&self) -> u32;
}

pub(crate) fn is_uplink(device: &Device) -> bool {
    device.flags & DEVICE_UPLINK != 0
}

/// The maps that an agent pinned.
pub(crate) struct PinnedMaps<F: MapFamily> {
    filter: Array<u64>,
    frontends: Hash<FrontendKey<F>, Frontend<F>>,
    sets: Array<BackendSet>,
    backends: Array<Backend<F>>,
    alive: Array<BackendState>,
    node_addresses: Hash<F::Addr, u32>,
    flows: Hash<FlowKey<F>, Flow<F>>,
    pending: Hash<FlowKey<F>, Flow<F>>,
    outbound: Hash<FlowKey<F>, Outbound>,
    snat_sources: Array<F::Addr>,
    /// All of them: the core wants references.
    devices: HashMap<u32, Device>,
    affinity: Hash<AffinityKey<F>, Affinity<F>>,
    sources: Trie<SourceRange<F>, u32>,
    service_cidrs: Array<ServiceCidrs<F>>,
    /// All of them: look-ups are by address.
    netns: HashMap<u64, F::Addr>,
    node_netns: u64,
    now: u32,
    /// The first that went wrong; the core has no room for errors.
    error: RefCell<Option<io::Error>>,
}

impl<F: MapFamily> PinnedMaps<F> {
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            filter: maps::vip_filter(pins)?,
            frontends: F::frontends(pins)?,
            sets: maps::backend_sets(pins)?,
            backends: F::backends(pins)?,
            alive: maps::backend_states(pins)?,
            node_addresses: F::node_addrs(pins)?,
            flows: F::flows(pins)?,
            pending: F::pending(pins)?,
            outbound: F::outbound(pins)?,
            snat_sources: F::snat_sources(pins)?,
            devices: maps::interfaces(pins)?.entries()?.into_iter().collect(),
            affinity: F::affinity(pins)?,
            sources: F::source_ranges(pins)?,
            service_cidrs: F::service_cidrs(pins)?,
            netns: F::netns(pins)?.entries()?.into_iter().collect(),
            node_netns: netns_cookie().unwrap_or_default(),
            now: Clock::read().map_or(0, Clock::now),
            error: RefCell::default(),
        })
    }

    /// Fails if a look-up failed.
    pub(crate) fn check(&self) -> Result<()> {
        match self.error.take() {
            Some(error) => Err(error).context("cannot read the pinned maps"),
            None => Ok(()),
        }
    }

    fn found<T>(&self, result: io::Result<Option<T>>) -> Option<T> {
        result.unwrap_or_else(|error| {
            self.error.borrow_mut().get_or_insert(error);
            None
        })
    }
}

impl<F: MapFamily> LiveMaps<F> for PinnedMaps<F> {
    fn filter(&self, element: u32) -> u64 {
        self.found(self.filter.get(element)).unwrap_or_default()
    }

    fn frontend(&self, key: &FrontendKey<F>) -> Option<Frontend<F>> {
        self.found(self.frontends.get(key))
    }

    fn set(&self, index: u32) -> BackendSet {
        self.found(self.sets.get(index)).unwrap_or_default()
    }

    fn backend(&self, slot: u32) -> Option<Backend<F>> {
        self.found(self.backends.get(slot))
    }

    fn alive(&self, element: u32) -> BackendState {
        self.found(self.alive.get(element)).unwrap_or_default()
    }

    fn node_address(&self, addr: &F::Addr) -> NodeAddress {
        NodeAddress(self.found(self.node_addresses.get(addr)).unwrap_or_default())
    }

    fn flow(&self, key: &FlowKey<F>) -> Option<Flow<F>> {
        self.found(self.flows.get(key))
    }

    fn pending(&self, key: &FlowKey<F>) -> Option<Flow<F>> {
        self.found(self.pending.get(key))
    }

    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound> {
        self.found(self.outbound.get(key))
    }

    fn snat_source(&self, index: u32) -> Option<F::Addr> {
        self.found(self.snat_sources.get(index))
    }

    fn devices(&self) -> &HashMap<u32, Device> {
        &self.devices
    }

    fn affinity(&self, key: &AffinityKey<F>) -> Option<Affinity<F>> {
        self.found(self.affinity.get(key))
    }

    fn is_allowed(&self, service: Id, client: &F::Addr) -> bool {
        let bits = SourceRange::<F>::SERVICE_BITS + 8 * size_of::<F::Addr>() as u32;
        self.found(self.sources.get((bits, SourceRange { service, addr: *client }))).is_some()
    }

    fn service_cidrs(&self) -> ServiceCidrs<F> {
        self.found(self.service_cidrs.get(0)).unwrap_or_default()
    }

    fn netns(&self) -> &HashMap<u64, F::Addr> {
        &self.netns
    }

    fn node_netns(&self) -> u64 {
        self.node_netns
    }

    fn now(&self) -> u32 {
        self.now
    }
}
