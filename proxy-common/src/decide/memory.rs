//! Tables in memory: for tests of the core, and for comparing the programs in the kernel with it.

use core::{
    cell::{Cell, RefCell},
    ops::Deref,
    ptr::NonNull,
};
use std::{
    boxed::Box,
    collections::{HashMap, HashSet},
    rc::Rc,
    vec::Vec,
};

use super::tables::{
    AffinityHandle, Attempt, FlowHandle, Fragmentable, Inserted, NodeAddress, Route, RouteKind, SocketTables,
    Step, Tables,
};
use super::{flow, verdict::DropReason};
use crate::{
    Family, V4, V6,
    layout::{
        affinity::{Affinity, AffinityKey},
        answers,
        backend::Backend,
        config::Settings,
        counter::Counter,
        device::Device,
        filter::{self, Mark},
        flow::{Flow, FlowKey, FlowState, Mac, Pair, Tuple},
        fragment::{FragmentKey, FragmentPorts},
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FrontendKey, Target},
        id::Id,
        outbound::Outbound,
        set::{Set, SetKind, SetRole},
        socket::{ConnectedPeer, SharedKey, SharedPeer, UdpPeers, UdpPeersRef},
    },
    packet::Packet,
};

/// What else differs between the families here.
pub trait MemoryFamily: Family {
    /// The device's source address for connections passed on; unspecified: none.
    fn snat_address(device: &Device) -> Self::Addr;
}

impl MemoryFamily for V4 {
    fn snat_address(device: &Device) -> u32 {
        device.snat_v4
    }
}

impl MemoryFamily for V6 {
    fn snat_address(device: &Device) -> [u32; 4] {
        device.snat_v6
    }
}

/// Flow entries; a program holds on to one while others come and go.
pub type FlowEntries<F> = HashMap<FlowKey<F>, Rc<Cell<Flow<F>>>>;

/// Affinity entries.
pub type AffinityEntries<F> = HashMap<AffinityKey<F>, Rc<Cell<Affinity<F>>>>;

/// Tables in memory. What the agent writes is filled in by hand; what the programs write can be looked at.
#[derive(Clone, Debug)]
pub struct MemoryTables<F: MemoryFamily> {
    /// Constants of the node.
    pub settings: Settings,
    /// Frontends; see [`MemoryTables::add_frontend`].
    pub frontends: HashMap<FrontendKey<F>, Target>,
    /// Marks in the filter.
    pub filter: HashSet<Mark>,
    /// Sets by [`Set::index`]; see [`MemoryTables::publish`].
    pub sets: HashMap<u32, Set>,
    /// Slots.
    pub backends: Vec<Backend<F>>,
    /// Backends that serve.
    pub alive: HashSet<Id>,
    /// The sets they are in.
    pub members: HashSet<(Id, u8)>,
    /// How long clients of service ports keep their backend; those that are not here keep none.
    pub affinity_timeouts: HashMap<Id, u32>,
    /// Which client had which backend.
    pub affinity: RefCell<AffinityEntries<F>>,
    /// Clients, one by one, that service ports with source ranges allow.
    pub sources: HashSet<(Id, F::Addr)>,
    /// Addresses in the ranges of service addresses, one by one.
    pub service_addresses: HashSet<F::Addr>,
    /// Addresses of network namespaces.
    pub netns: HashMap<u64, F::Addr>,
    /// The node's addresses.
    pub node_addresses: HashMap<F::Addr, NodeAddress>,
    /// Devices by index.
    pub devices: HashMap<u32, Device>,
    /// Routes by destination, whatever the source and the device. Those with an MTU are for packets up to that.
    pub routes: HashMap<F::Addr, Route<F>>,
    /// The route of every other destination.
    pub default_route: Route<F>,
    /// Source addresses that routes prefer, by destination.
    pub preferred_sources: HashMap<F::Addr, F::Addr>,
    /// Source addresses that were given for connections to remote endpoints.
    pub snat_sources: Vec<F::Addr>,
    /// What the node sent itself, by the tuples of replies.
    pub outbound: RefCell<HashMap<FlowKey<F>, Outbound>>,
    /// Index of the device by which packets that leave came in.
    pub came_in: Cell<u32>,
    /// Index of the device by which packets leave.
    pub leaves: Cell<u32>,
    /// The timestamp of TCP packets.
    pub timestamp: Cell<u32>,
    /// Local address, port (network byte order) and protocol of the node's sockets.
    pub listening: HashSet<(F::Addr, u16, u8)>,
    /// Ports of first fragments.
    pub fragments: RefCell<HashMap<FragmentKey<F>, FragmentPorts>>,
    /// How long packets are, in bytes.
    pub size: Cell<u32>,
    /// May packets be cut?
    pub fragmentable: Cell<Fragmentable>,
    /// Flow entries.
    pub flows: RefCell<FlowEntries<F>>,
    /// Entries of flows that are not confirmed.
    pub pending: RefCell<FlowEntries<F>>,
    /// Entries that another CPU moves to the confirmed ones just before the next look-up of an unconfirmed one that is not there.
    pub arriving: RefCell<FlowEntries<F>>,
    /// Marks of where their answers come from.
    pub answers: RefCell<HashSet<answers::Mark>>,
    /// How many flow entries of each kind there may be. Unlike the kernel's map, this one forgets none.
    pub max_flows: usize,
    /// Cookie of the socket at hand.
    pub socket: Cell<u64>,
    /// Cookie of its network namespace.
    pub socket_netns: Cell<u64>,
    /// Can sockets keep something themselves?
    pub socket_storage: bool,
    /// Is there memory for it?
    pub socket_memory: bool,
    /// What connected sockets keep.
    pub connected: RefCell<HashMap<u64, ConnectedPeer<F>>>,
    /// What unconnected sockets keep.
    pub udp_peers: RefCell<HashMap<u64, Rc<Cell<UdpPeers<F>>>>>,
    /// Entries that sockets share. They are leaked, because the core borrows them; tests are short.
    pub shared_peers: RefCell<HashMap<SharedKey, &'static SharedPeer<F>>>,
    /// What was counted.
    pub counts: RefCell<HashMap<Counter, u64>>,
    /// Steps since they were last cleared.
    pub steps: RefCell<Vec<Step<F>>>,
    /// The time.
    pub now: Cell<u32>,
    /// State of the generator of random numbers.
    pub random: Cell<u64>,
    /// The random number to give out instead.
    pub fixed_random: Cell<Option<u32>>,
}

impl<F: MemoryFamily> MemoryTables<F> {
    /// Empty tables.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            frontends: HashMap::new(),
            filter: HashSet::new(),
            sets: HashMap::new(),
            backends: Vec::new(),
            alive: HashSet::new(),
            members: HashSet::new(),
            affinity_timeouts: HashMap::new(),
            affinity: RefCell::default(),
            sources: HashSet::new(),
            service_addresses: HashSet::new(),
            netns: HashMap::new(),
            node_addresses: HashMap::new(),
            devices: HashMap::new(),
            routes: HashMap::new(),
            default_route: Route::default(),
            preferred_sources: HashMap::new(),
            snat_sources: Vec::new(),
            outbound: RefCell::default(),
            came_in: Cell::new(0),
            leaves: Cell::new(0),
            timestamp: Cell::new(0),
            listening: HashSet::new(),
            fragments: RefCell::default(),
            size: Cell::new(100),
            fragmentable: Cell::new(Fragmentable::No),
            flows: RefCell::default(),
            pending: RefCell::default(),
            arriving: RefCell::default(),
            answers: RefCell::default(),
            max_flows: usize::MAX,
            socket: Cell::new(7),
            socket_netns: Cell::new(1),
            socket_storage: true,
            socket_memory: true,
            connected: RefCell::default(),
            udp_peers: RefCell::default(),
            shared_peers: RefCell::default(),
            counts: RefCell::default(),
            steps: RefCell::default(),
            now: Cell::new(1_000),
            random: Cell::new(1),
            fixed_random: Cell::new(None),
        }
    }

    /// Adds a frontend and its marks in the filter. NodePorts need the node's addresses to be there before.
    pub fn add_frontend(&mut self, key: FrontendKey<F>, target: Target) {
        if target.flags() & FRONTEND_CLUSTER_IP != 0 {
            let address = Target::new(target.service(), FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS);
            self.frontends.extend(address.map(|target| (FrontendKey::of_address(key.addr), target)));
            self.filter.insert(filter::of_address::<F>(&key.addr));
        } else if F::same(&key.addr, &F::UNSPECIFIED) {
            for (addr, _) in self.node_addresses.iter().filter(|(_, uses)| uses.serves_nodeports()) {
                self.filter.insert(filter::of_frontend::<F>(addr, key.port, key.protocol));
            }
        } else {
            self.filter.insert(filter::of_frontend::<F>(&key.addr, key.port, key.protocol));
        }
        self.frontends.insert(key, target);
    }

    /// Publishes the backends of a service port, in new slots, and marks them as alive.
    pub fn publish(&mut self, service: Id, role: SetRole, backends: &[Backend<F>]) {
        let base = self.backends.len() as u32;
        self.backends.extend(backends);
        self.alive.extend(backends.iter().map(|backend| backend.id));
        self.members.extend(backends.iter().map(|backend| (backend.id, role.bit())));
        let is_sticky = self.affinity_timeouts.contains_key(&service);
        let kind = if is_sticky { SetKind::Sticky } else { SetKind::Uniform };
        self.sets.insert(Set::index(service, role), Set::new(base, backends.len() as u32, kind));
    }

    /// What a counter stands at.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counts.borrow().get(&counter).copied().unwrap_or(0)
    }

    /// A copy of a flow entry, confirmed or not.
    pub fn flow_entry(&self, key: &FlowKey<F>) -> Option<Flow<F>> {
        let copy = |entries: &RefCell<FlowEntries<F>>| entries.borrow().get(key).map(|flow| flow.get());
        copy(&self.flows).or_else(|| copy(&self.pending))
    }

    /// Inserts or replaces an entry; false if there is no room.
    fn replace(&self, entries: &RefCell<FlowEntries<F>>, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        let mut entries = entries.borrow_mut();
        if entries.len() >= self.max_flows && !entries.contains_key(key) {
            return false;
        }
        entries.insert(*key, Rc::new(Cell::new(*flow)));
        true
    }
}

/// A flow entry that was found: as it was then, and where to write.
#[derive(Clone, Debug)]
pub struct MemoryFlow<F: Family> {
    seen: Flow<F>,
    entry: Rc<Cell<Flow<F>>>,
}

fn found<F: Family>(entries: &RefCell<FlowEntries<F>>, key: &FlowKey<F>) -> Option<MemoryFlow<F>> {
    entries.borrow().get(key).map(|entry| MemoryFlow { seen: entry.get(), entry: Rc::clone(entry) })
}

impl<F: Family> MemoryFlow<F> {
    fn change(&self, change: impl FnOnce(&mut Flow<F>)) {
        let mut flow = self.entry.get();
        change(&mut flow);
        self.entry.set(flow);
    }
}

impl<F: Family> Deref for MemoryFlow<F> {
    type Target = Flow<F>;

    fn deref(&self) -> &Flow<F> {
        &self.seen
    }
}

impl<F: Family> FlowHandle<F> for MemoryFlow<F> {
    fn touch(&self, now: u32) {
        self.change(|flow| flow.last_seen = now);
    }

    fn set_state(&self, state: FlowState) {
        self.change(|flow| flow.state = state as u8);
    }

    fn set_mac(&self, mac: Mac) {
        self.change(|flow| flow.mac = mac);
    }

    fn set_isn(&self, isn: u32) {
        self.change(|flow| flow.isn = isn);
    }

    fn set_acknowledged(&self, acknowledged: u32) {
        self.change(|flow| flow.acknowledged = acknowledged);
    }

    fn set_timestamp(&self, timestamp: u32) {
        self.change(|flow| flow.timestamp = timestamp);
    }
}

/// An affinity entry that was found: as it was then, and where to write.
#[derive(Clone, Debug)]
pub struct MemoryAffinity<F: Family> {
    seen: Affinity<F>,
    entry: Rc<Cell<Affinity<F>>>,
}

impl<F: Family> Deref for MemoryAffinity<F> {
    type Target = Affinity<F>;

    fn deref(&self) -> &Affinity<F> {
        &self.seen
    }
}

impl<F: Family> AffinityHandle<F> for MemoryAffinity<F> {
    fn touch(&self, now: u32) {
        self.entry.set(Affinity { last_used: now, ..self.entry.get() });
    }
}

impl<F: MemoryFamily> Tables<F> for MemoryTables<F> {
    type Flow = MemoryFlow<F>;
    type Affinity = MemoryAffinity<F>;
    type Pair = Box<Pair<F>>;
    type KnownRoute = Box<Route<F>>;

    fn pair(&self) -> Option<Box<Pair<F>>> {
        Some(Box::default())
    }

    fn settings(&self) -> Settings {
        self.settings
    }

    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        self.filter.contains(&filter::of_address::<F>(addr))
            || self.filter.contains(&filter::of_frontend::<F>(addr, port, protocol))
    }

    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target> {
        self.frontends.get(key).copied()
    }

    fn set(&self, service: Id, role: SetRole) -> Set {
        self.sets.get(&Set::index(service, role)).copied().unwrap_or(Set::EMPTY)
    }

    fn backend(&self, slot: u32) -> Option<&Backend<F>> {
        self.backends.get(slot as usize)
    }

    fn is_alive(&self, backend: Id) -> bool {
        self.alive.contains(&backend)
    }

    fn is_member(&self, backend: Id, role: SetRole) -> bool {
        self.alive.contains(&backend) && self.members.contains(&(backend, role.bit()))
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

    fn node_address(&self, addr: &F::Addr) -> NodeAddress {
        self.node_addresses.get(addr).copied().unwrap_or_default()
    }

    fn device(&self, ifindex: u32) -> Option<&Device> {
        self.devices.get(&ifindex)
    }

    fn flow(&self, key: &FlowKey<F>) -> Option<MemoryFlow<F>> {
        found(&self.flows, key)
    }

    fn may_be_answer(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        self.answers.borrow().contains(&answers::Mark::of::<F>(addr, port, protocol))
    }

    fn announce_answers(&self, addr: &F::Addr, port: u16, protocol: u8) {
        self.answers.borrow_mut().insert(answers::Mark::of::<F>(addr, port, protocol));
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

    fn open_flow(&self, pair: &mut Pair<F>) -> Option<DropReason> {
        flow::open(self, pair)
    }

    fn attempt(&self, pair: &mut Pair<F>, seize: bool) -> Attempt {
        flow::attempt(self, pair, seize)
    }

    fn confirm_flow(&self, pair: &mut Pair<F>) -> bool {
        flow::confirm(self, pair)
    }

    fn snat_source(&self, index: u32) -> Option<F::Addr> {
        self.snat_sources.get(index as usize).copied()
    }

    fn may_be_snat_source(&self, addr: &F::Addr) -> bool {
        self.filter.contains(&filter::of_snat_source::<F>(addr))
    }

    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound> {
        self.outbound.borrow().get(key).copied()
    }

    fn remember_outbound(&self, key: &FlowKey<F>, outbound: &Outbound) {
        self.outbound.borrow_mut().insert(*key, *outbound);
    }

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

    fn fragment(&self, key: &FragmentKey<F>) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey<F>, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }

    fn size(&self, _packet: &Packet<F>) -> u32 {
        self.size.get()
    }

    fn fragmentable(&self, _packet: &Packet<F>) -> Fragmentable {
        self.fragmentable.get()
    }

    fn route(&self, _ifindex: u32, _src: &F::Addr, dst: &F::Addr, size: u32, route: &mut Route<F>) {
        *route = self.routes.get(dst).copied().unwrap_or(self.default_route);
        if route.mtu != 0 && size > route.mtu {
            route.kind = RouteKind::TooBig;
        }
    }

    fn known_route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32) -> Option<Box<Route<F>>> {
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

    fn has_socket(&self, tuple: &Tuple<F>, protocol: u8) -> bool {
        self.listening.contains(&(tuple.dst, tuple.dport, protocol))
    }

    fn random(&self) -> u32 {
        if let Some(fixed) = self.fixed_random.get() {
            return fixed;
        }
        // Knuth's MMIX generator; the upper half is the better one.
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

    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool {
        *addr = F::snat_address(device);
        !F::same(addr, &F::UNSPECIFIED)
    }

    fn step(&self, step: Step<F>) {
        self.steps.borrow_mut().push(step);
    }
}

impl<F: MemoryFamily> SocketTables<F> for MemoryTables<F> {
    fn cookie(&self) -> u64 {
        self.socket.get()
    }

    fn netns(&self) -> u64 {
        self.socket_netns.get()
    }

    fn has_socket_storage(&self) -> bool {
        self.socket_storage
    }

    fn connected(&self) -> Option<ConnectedPeer<F>> {
        self.connected.borrow().get(&self.socket.get()).copied()
    }

    fn set_connected(&self, peer: &mut ConnectedPeer<F>) {
        self.connected.borrow_mut().insert(self.socket.get(), *peer);
    }

    fn udp_peers_or_new(&self) -> Option<UdpPeersRef<'_, F>> {
        if self.socket_storage && self.socket_memory {
            self.udp_peers.borrow_mut().entry(self.socket.get()).or_default();
        }
        self.udp_peers()
    }

    fn udp_peers(&self) -> Option<UdpPeersRef<'_, F>> {
        let udp_peers = self.udp_peers.borrow();
        let at = NonNull::new(udp_peers.get(&self.socket.get())?.as_ptr())?;
        // SAFETY: the tables keep it, and give out no reference to it.
        Some(unsafe { UdpPeersRef::new(at) })
    }

    fn shared_peer(&self, key: &SharedKey) -> Option<&SharedPeer<F>> {
        self.shared_peers.borrow().get(key).copied()
    }

    fn set_shared_peer(&self, key: &SharedKey, peer: &SharedPeer<F>) -> bool {
        self.shared_peers.borrow_mut().insert(*key, Box::leak(Box::new(*peer)));
        true
    }

    fn netns_address(&self, netns: u64, addr: &mut F::Addr) -> bool {
        self.netns.get(&netns).map(|known| *addr = *known).is_some()
    }
}
