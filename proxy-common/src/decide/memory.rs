//! Tables in memory: for tests of the core, and for comparing the programs in the kernel with it.

mod entries;
mod packets;
mod sockets;

use core::cell::{Cell, RefCell};
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
    vec::Vec,
};

use super::tables::{Fragmentable, NodeAddress, Route, Step};
use crate::{
    Family, V4, V6,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::Backend,
        config::Settings,
        counter::Counter,
        device::Device,
        filter::{self, Fingerprint},
        flow::{Flow, FlowKey, Tuple, flags},
        fragment::{FragmentKey, FragmentPorts},
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FrontendKey, Target},
        id::Id,
        outbound::Outbound,
        reply_filter,
        set::{BackendSet, BackendSetKind, SetPolicy},
        socket::{ConnectedPeer, SharedKey, SharedPeer, UdpPeers},
    },
};

pub use self::entries::{MemoryAffinity, MemoryFlow};

/// The other differences between the families here.
pub trait MemoryFamily: Family {
    /// The device's source address for forwarded connections; unspecified: none.
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

/// Flow entries. A program keeps a reference to one while others are inserted and removed.
pub type FlowEntries<F> = HashMap<FlowKey<F>, Rc<Cell<Flow<F>>>>;

/// Source addresses, by device and endpoint.
pub type Sources<F> = HashMap<(u32, <F as Family>::Addr), <F as Family>::Addr>;

/// Affinity entries.
pub type AffinityEntries<F> = HashMap<AffinityKey<F>, Rc<Cell<Affinity<F>>>>;

/// Tables in memory. Tests fill in the agent's part by hand, and inspect the part that the programs write.
#[derive(Clone, Debug)]
pub struct MemoryTables<F: MemoryFamily> {
    /// Constants of the node.
    pub settings: Settings,
    /// Frontends; see [`MemoryTables::add_frontend`].
    pub frontends: HashMap<FrontendKey<F>, Target>,
    /// Fingerprints in the filter.
    pub filter: HashSet<Fingerprint>,
    /// Sets by [`BackendSet::index`]; see [`MemoryTables::publish`].
    pub sets: HashMap<u32, BackendSet>,
    /// Slots.
    pub backends: Vec<Backend<F>>,
    /// Backends that serve.
    pub alive: HashSet<Id>,
    /// The sets that backends are members of.
    pub members: HashSet<(Id, u8)>,
    /// How long clients of service ports keep their backend; service ports without an entry have no session
    /// affinity.
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
    /// Routes by destination, for any source and device. Those with an MTU are for packets up to that size.
    pub routes: HashMap<F::Addr, Route<F>>,
    /// The route of every other destination.
    pub default_route: Route<F>,
    /// Source addresses that routes prefer, by destination.
    pub preferred_sources: HashMap<F::Addr, F::Addr>,
    /// Whether flows get the source of the last one that was opened to the same endpoint.
    pub remembers_sources: bool,
    /// Those sources, by the device that requests come in by and the endpoint.
    pub recent_sources: RefCell<Sources<F>>,
    /// Configured source addresses for connections to remote endpoints.
    pub snat_sources: Vec<F::Addr>,
    /// Packets that the node sent itself, by the tuples of replies.
    pub outbound: RefCell<HashMap<FlowKey<F>, Outbound>>,
    /// Index of the device by which packets that leave came in.
    pub came_in: Cell<u32>,
    /// Index of the device by which packets leave.
    pub leaves: Cell<u32>,
    /// The timestamp of TCP packets.
    pub timestamp: Cell<u32>,
    /// Local address, port (network byte order) and protocol of the node's sockets.
    pub listening: HashSet<(F::Addr, u16, u8)>,
    /// Connections of sockets in network namespaces of pods: namespace, tuple of the replies, protocol.
    pub connections: HashSet<(u32, Tuple<F>, u8)>,
    /// Ports of first fragments.
    pub fragments: RefCell<HashMap<FragmentKey<F>, FragmentPorts>>,
    /// Length of packets in bytes.
    pub size: Cell<u32>,
    /// Whether packets may be fragmented.
    pub fragmentable: Cell<Fragmentable>,
    /// Flow entries.
    pub flows: RefCell<FlowEntries<F>>,
    /// Entries of flows that are not confirmed.
    pub pending: RefCell<FlowEntries<F>>,
    /// Entries that another CPU moves to the confirmed flows just before the next failed look-up of an
    /// unconfirmed one.
    pub arriving: RefCell<FlowEntries<F>>,
    /// Fingerprints of the sources of their replies.
    pub reply_filter: RefCell<HashSet<reply_filter::Fingerprint>>,
    /// Maximum number of flow entries of each kind. Unlike the kernel's map, this one does not evict.
    pub max_flows: usize,
    /// Cookie of the current socket.
    pub socket: Cell<u64>,
    /// Cookie of its network namespace.
    pub socket_netns: Cell<u64>,
    /// Whether the kernel has socket storage.
    pub socket_storage: bool,
    /// Whether the kernel has memory for it.
    pub socket_memory: bool,
    /// Socket storage of connected sockets.
    pub connected: RefCell<HashMap<u64, ConnectedPeer<F>>>,
    /// Socket storage of unconnected sockets.
    pub udp_peers: RefCell<HashMap<u64, Rc<Cell<UdpPeers<F>>>>>,
    /// Entries that sockets share. They are leaked, because the core borrows them; tests are short.
    pub shared_peers: RefCell<HashMap<SharedKey, &'static SharedPeer<F>>>,
    /// Counters.
    pub counts: RefCell<HashMap<Counter, u64>>,
    /// Steps since they were last cleared.
    pub steps: RefCell<Vec<Step<F>>>,
    /// The current time.
    pub now: Cell<u32>,
    /// State of the random number generator.
    pub random: Cell<u64>,
    /// The random number to return instead.
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
            remembers_sources: false,
            recent_sources: RefCell::default(),
            snat_sources: Vec::new(),
            outbound: RefCell::default(),
            came_in: Cell::new(0),
            leaves: Cell::new(0),
            timestamp: Cell::new(0),
            listening: HashSet::new(),
            connections: HashSet::new(),
            fragments: RefCell::default(),
            size: Cell::new(100),
            fragmentable: Cell::new(Fragmentable::No),
            flows: RefCell::default(),
            pending: RefCell::default(),
            arriving: RefCell::default(),
            reply_filter: RefCell::default(),
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

    /// Adds a frontend and its fingerprints in the filter. For nodePorts, the node's addresses must be added
    /// before.
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
    pub fn publish(&mut self, service: Id, set_policy: SetPolicy, backends: &[Backend<F>]) {
        let base = self.backends.len() as u32;
        self.backends.extend(backends);
        self.alive.extend(backends.iter().map(|backend| backend.id));
        self.members.extend(backends.iter().map(|backend| (backend.id, set_policy.bit())));
        let has_session_affinity = self.affinity_timeouts.contains_key(&service);
        let kind =
            if has_session_affinity { BackendSetKind::SessionAffinity } else { BackendSetKind::Uniform };
        self.sets.insert(
            BackendSet::index(service, set_policy),
            BackendSet::new(base, backends.len() as u32, kind),
        );
    }

    /// The value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counts.borrow().get(&counter).copied().unwrap_or(0)
    }

    /// A copy of a flow entry, confirmed or not.
    pub fn flow_entry(&self, key: &FlowKey<F>) -> Option<Flow<F>> {
        let copy = |entries: &RefCell<FlowEntries<F>>| entries.borrow().get(key).map(|flow| flow.get());
        copy(&self.flows).or_else(|| copy(&self.pending))
    }

    /// Inserts or replaces an entry; false if the map is full.
    fn replace(&self, entries: &RefCell<FlowEntries<F>>, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        // The model of the reply filter relies on this order (`layout/reply_filter/model.rs`).
        let is_reply = flow.flags & flags::REVERSE != 0;
        let is_filtered = || self.reply_filter.borrow().contains(&reply_filter::Fingerprint::of_source(key));
        assert!(!is_reply || is_filtered(), "{key:?} is not in the reply filter");
        let mut entries = entries.borrow_mut();
        if entries.len() >= self.max_flows && !entries.contains_key(key) {
            return false;
        }
        entries.insert(*key, Rc::new(Cell::new(*flow)));
        true
    }
}
