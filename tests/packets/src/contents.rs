//! The entries of the loaded programs' maps.

use std::{borrow::Borrow, collections::HashMap as StdHashMap};

use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use proxy_common::{
    decide::memory::MemoryTables,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::BackendState,
        cidr::{Cidr, ServiceCidrs},
        device::Device,
        flow::{Flow, FlowKey, FlowState},
        fragment::{FragmentKey, FragmentPorts, QueuedFragment, QueuedFragmentKey},
        frontend::{Frontend, FrontendKey},
        id::Id,
        next_hop::{HEARTBEAT, NextHop, SLOTS},
        outbound::Outbound,
        set::BackendSet,
        source_range::SourceRange,
    },
    packet::PROTOCOL_UDP,
};

use super::{family::PacketFamily, kernel::Kernel, pool};

/// Entries of a map.
type Entries<K, V> = StdHashMap<K, V>;

/// The maps of flows: the confirmed ones, and the others.
const FLOWS: [&str; 2] = ["flows", "pending"];

impl Kernel {
    /// Writes the same entries as the agent. Elements of arrays that these tables lack stay unchanged.
    ///
    /// # Errors
    /// The kernel's.
    pub fn install<F: PacketFamily>(&mut self, tables: &MemoryTables<F>) -> Result<()> {
        self.put_all("backend_sets", tables.sets.iter().map(|(index, set)| (*index, *set)))?;
        self.put_all(&family_map::<F>("backends"), (0..).zip(tables.backends.iter().copied()))?;
        let mut alive = self.read_array::<BackendState>(
            "backend_states",
            tables.alive.iter().map(|id| BackendState::position(*id).0),
        )?;
        let mut roles = StdHashMap::<Id, u8>::new();
        for (member, role) in &tables.members {
            *roles.entry(*member).or_default() |= role;
        }
        for id in &tables.alive {
            let entry = BackendState::entry(*id, roles.get(id).copied().unwrap_or(0));
            let (element, half) = BackendState::position(*id);
            let word = alive.entry(element).or_default();
            word.0 = word.0 & !(0xffff << (16 * half)) | (entry as u64) << (16 * half);
        }
        self.put_all("backend_states", alive.into_iter())?;
        let timeouts = tables.affinity_timeouts.iter();
        self.put_all(
            "backend_sets",
            timeouts.map(|(service, timeout)| {
                (BackendSet::affinity_index(*service), BackendSet((*timeout).into()))
            }),
        )?;
        self.put_sources(tables)?;
        self.put_service_addresses(tables)?;
        let elements = tables.filter.iter().map(|mark| mark.element);
        let mut words = self.read_array::<u64>("vip_filter", elements)?;
        for mark in &tables.filter {
            *words.entry(mark.element).or_default() |= mark.mask;
        }
        self.put_all("vip_filter", words.into_iter())?;
        let frontends = tables.frontends.iter().map(|(key, target)| (*key, Frontend::new(*key, *target)));
        self.put_hash::<FrontendKey<F>, Frontend<F>>(&family_map::<F>("frontends"), frontends)?;
        self.put_hash::<u32, Device>(
            "interfaces",
            tables.devices.iter().map(|(index, device)| (*index, *device)),
        )?;
        let addresses = tables.node_addresses.iter().map(|(addr, uses)| (*addr, uses.0));
        self.put_hash::<F::Addr, u32>(&family_map::<F>("node_addrs"), addresses)?;
        let sources = (0..).zip(tables.snat_sources.iter().copied());
        self.put_all(&family_map::<F>("snat_sources"), sources)
    }

    fn put_sources<F: PacketFamily>(&mut self, tables: &MemoryTables<F>) -> Result<()> {
        let map = family_map::<F>("source_ranges");
        let mut object = self.object();
        let mut trie: LpmTrie<&mut MapData, SourceRange<F>, u32> =
            object.map_mut(&map).with_context(|| map.clone())?.try_into()?;
        for (service, addr) in &tables.sources {
            let whole = 8 * size_of::<SourceRange<F>>() as u32;
            trie.insert(&Key::new(whole, SourceRange { service: *service, addr: *addr }), 1, 0)
                .with_context(|| map.clone())?;
        }
        Ok(())
    }

    /// The map has ranges, the tables addresses one by one.
    fn put_service_addresses<F: PacketFamily>(&mut self, tables: &MemoryTables<F>) -> Result<()> {
        let mut cidrs = ServiceCidrs::<F>::default();
        anyhow::ensure!(tables.service_addresses.len() <= cidrs.0.len(), "too many service addresses");
        for (cidr, addr) in cidrs.0.iter_mut().zip(&tables.service_addresses) {
            *cidr = Cidr { base: *addr, mask: F::ONES };
        }
        self.put_all(&family_map::<F>("service_cidrs"), [(0, cidrs)].into_iter())
    }

    fn put_all<V: Pod>(&mut self, map: &str, elements: impl Iterator<Item = (u32, V)>) -> Result<()> {
        let mut object = self.object();
        let mut array: Array<&mut MapData, V> =
            object.map_mut(map).with_context(|| map.to_owned())?.try_into()?;
        for (index, value) in elements {
            array.set(index, value, 0).with_context(|| format!("{map} at {index}"))?;
        }
        Ok(())
    }

    fn read_array<V: Pod>(
        &self,
        map: &str,
        indices: impl Iterator<Item = u32>,
    ) -> Result<StdHashMap<u32, V>> {
        let object = self.object();
        let array: Array<&MapData, V> = object.map(map).with_context(|| map.to_owned())?.try_into()?;
        indices.map(|index| Ok((index, array.get(&index, 0)?))).collect()
    }

    fn put_hash<K: Pod, V: Pod>(&mut self, map: &str, entries: impl Iterator<Item = (K, V)>) -> Result<()> {
        let mut object = self.object();
        let mut hash: HashMap<&mut MapData, K, V> =
            object.map_mut(map).with_context(|| map.to_owned())?.try_into()?;
        for (key, value) in entries {
            hash.insert(key.borrow(), value.borrow(), 0).with_context(|| map.to_owned())?;
        }
        Ok(())
    }

    /// Marks a backend as serving in the sets it is in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn revive<F: PacketFamily>(&mut self, backend: Id, tables: &MemoryTables<F>) -> Result<()> {
        let (element, half) = BackendState::position(backend);
        let mut alive = self.read_array::<BackendState>("backend_states", std::iter::once(element))?;
        let roles = tables.members.iter().filter(|(member, _)| *member == backend);
        let entry = BackendState::entry(backend, roles.fold(0, |roles, (_, role)| roles | role));
        let word = alive.entry(element).or_default();
        word.0 = word.0 & !(0xffff << (16 * half)) | (entry as u64) << (16 * half);
        self.put_all("backend_states", alive.into_iter())
    }

    /// Marks a backend as gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn release_backend(&mut self, backend: Id) -> Result<()> {
        let (element, half) = BackendState::position(backend);
        let mut alive = self.read_array::<BackendState>("backend_states", std::iter::once(element))?;
        let word = alive.entry(element).or_default();
        word.0 &= !(0xffff << (16 * half));
        self.put_all("backend_states", alive.into_iter())
    }

    fn entries<K: Pod + Eq + std::hash::Hash, V: Pod>(&self, map: &str) -> Result<Entries<K, V>> {
        let object = self.object();
        let hash: HashMap<&MapData, K, V> = object.map(map).with_context(|| map.to_owned())?.try_into()?;
        Ok(hash.iter().collect::<Result<_, _>>()?)
    }

    fn remove<K: Pod, V: Pod>(&mut self, map: &str, keys: impl IntoIterator<Item = K>) -> Result<()> {
        let mut object = self.object();
        let mut hash: HashMap<&mut MapData, K, V> =
            object.map_mut(map).with_context(|| map.to_owned())?.try_into()?;
        for key in keys {
            hash.remove(&key)?;
        }
        Ok(())
    }

    fn entry<K: Pod, V: Pod>(&self, map: &str, key: &K) -> Result<Option<V>> {
        let object = self.object();
        let hash: HashMap<&MapData, K, V> = object.map(map).with_context(|| map.to_owned())?.try_into()?;
        match hash.get(key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The entries of a family's confirmed flows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn confirmed<F: PacketFamily>(&self) -> Result<Entries<FlowKey<F>, Flow<F>>> {
        self.entries(&family_map::<F>("flows"))
    }

    /// Entries of unconfirmed flows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pending<F: PacketFamily>(&self) -> Result<Entries<FlowKey<F>, Flow<F>>> {
        self.entries(&family_map::<F>("pending"))
    }

    /// All flow entries of a family, confirmed or not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flows<F: PacketFamily>(&self) -> Result<Entries<FlowKey<F>, Flow<F>>> {
        let mut flows = self.pending::<F>()?;
        flows.extend(self.confirmed::<F>()?);
        Ok(flows)
    }

    /// How many entries there are of confirmed and of unconfirmed flows.
    ///
    /// # Errors
    /// The kernel's.
    pub fn count_flows<F: PacketFamily>(&self) -> Result<(usize, usize)> {
        Ok((self.confirmed::<F>()?.len(), self.pending::<F>()?.len()))
    }

    /// Removes the flow entries of a family for which the condition does not hold.
    ///
    /// # Errors
    /// The kernel's.
    pub fn retain_flows<F: PacketFamily>(&mut self, keep: impl Fn(&FlowKey<F>) -> bool) -> Result<()> {
        for map in FLOWS.map(family_map::<F>) {
            let flows = self.entries::<FlowKey<F>, Flow<F>>(&map)?;
            self.remove::<FlowKey<F>, Flow<F>>(&map, flows.into_keys().filter(|key| !keep(key)))?;
        }
        Ok(())
    }

    /// One flow entry, confirmed or not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flow<F: PacketFamily>(&self, key: &FlowKey<F>) -> Result<Option<Flow<F>>> {
        let [confirmed, pending] = FLOWS.map(family_map::<F>);
        let flow = self.entry(&confirmed, key)?;
        if flow.is_some() { Ok(flow) } else { self.entry(&pending, key) }
    }

    /// Ages all flow entries, and the node's own connections, by so many jiffies.
    ///
    /// # Errors
    /// The kernel's.
    pub fn age_flows<F: PacketFamily>(&mut self, jiffies: u32) -> Result<()> {
        for map in FLOWS.map(family_map::<F>) {
            let mut flows = self.entries::<FlowKey<F>, Flow<F>>(&map)?;
            for (key, flow) in &mut flows {
                flow.last_seen = flow.last_seen.wrapping_sub(jiffies);
                // When its frontend was looked up.
                if key.protocol == PROTOCOL_UDP {
                    flow.isn = flow.isn.wrapping_sub(jiffies);
                }
            }
            self.put_hash(&map, flows.into_iter())?;
        }
        let aged = self
            .outbound::<F>()?
            .into_iter()
            .map(|(key, sent)| (key, Outbound { last_seen: sent.last_seen.wrapping_sub(jiffies), ..sent }));
        self.put_hash(&family_map::<F>("outbound"), aged)
    }

    /// Changes all flow entries of a family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change_flows<F: PacketFamily>(&mut self, change: impl Fn(&mut Flow<F>)) -> Result<()> {
        for map in FLOWS.map(family_map::<F>) {
            let mut flows = self.entries::<FlowKey<F>, Flow<F>>(&map)?;
            flows.values_mut().for_each(&change);
            self.put_hash(&map, flows.into_iter())?;
        }
        Ok(())
    }

    /// Confirms all flows of a family, as if their handshakes were over.
    ///
    /// # Errors
    /// The kernel's.
    pub fn confirm_flows<F: PacketFamily>(&mut self) -> Result<()> {
        let [confirmed, pending] = FLOWS.map(family_map::<F>);
        let mut flows = self.pending::<F>()?;
        flows.values_mut().for_each(|flow| flow.state = FlowState::Established as u8);
        self.clear::<FlowKey<F>, Flow<F>>(&pending)?;
        self.put_hash(&confirmed, flows.into_iter())
    }

    /// The node's own connections from addresses and ports that are ours as well, by the replies.
    ///
    /// # Errors
    /// The kernel's.
    pub fn outbound<F: PacketFamily>(&self) -> Result<Entries<FlowKey<F>, Outbound>> {
        self.entries(&family_map::<F>("outbound"))
    }

    /// The neighbours that programs sent to, in no order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next_hops<F: PacketFamily>(&self) -> Result<Vec<NextHop<F>>> {
        let slots = self.read_array::<NextHop<F>>(&family_map::<F>("next_hops"), 0..SLOTS)?;
        Ok(slots.into_values().filter(|hop| hop.ifindex != 0).collect())
    }

    /// Writes such neighbours into their slots, and the agent's heartbeat.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put_next_hops<F: PacketFamily>(&mut self, hops: &[NextHop<F>], heartbeat: u32) -> Result<()> {
        let beat = (HEARTBEAT, NextHop { last_used: heartbeat, ..NextHop::default() });
        let slots = hops.iter().map(|hop| (NextHop::<F>::slot(&hop.addr, hop.ifindex), *hop));
        self.put_all(&family_map::<F>("next_hops"), slots.chain([beat]))
    }

    /// Makes all CPUs forget the routes that they know.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget_routes<F: PacketFamily>(&mut self) -> Result<()> {
        let object = self.object();
        for map in ["fib_cache", "hop_routes"] {
            pool::empty(object.map(&family_map::<F>(map)).context(map)?)?;
        }
        Ok(())
    }

    /// The affinity entries of a family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn affinity<F: PacketFamily>(&self) -> Result<Entries<AffinityKey<F>, Affinity<F>>> {
        self.entries(&family_map::<F>("affinity"))
    }

    /// The ports of first fragments.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fragments<F: PacketFamily>(&self) -> Result<Entries<FragmentKey<F>, FragmentPorts>> {
        self.entries(&family_map::<F>("fragments"))
    }

    /// Removes all that the programs remember of clients of a family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget_clients<F: PacketFamily>(&mut self) -> Result<()> {
        self.retain_flows::<F>(|_| false)?;
        self.clear::<FlowKey<F>, Outbound>(&family_map::<F>("outbound"))?;
        self.clear::<FragmentKey<F>, FragmentPorts>(&family_map::<F>("fragments"))?;
        self.clear::<QueuedFragmentKey<F>, QueuedFragment>(&family_map::<F>("frag_queue"))?;
        self.clear::<AffinityKey<F>, Affinity<F>>(&family_map::<F>("affinity"))
    }

    fn clear<K: Pod + Eq + std::hash::Hash, V: Pod>(&mut self, map: &str) -> Result<()> {
        let keys = self.entries::<K, V>(map)?.into_keys();
        self.remove::<K, V>(map, keys)
    }
}

fn family_map<F: PacketFamily>(name: &str) -> String {
    format!("{name}_v{}", F::NUMBER)
}
