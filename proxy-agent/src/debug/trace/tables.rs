//! The core's view of the maps for one run. Its writes are dropped, its decisions are recorded.

use std::{
    cell::{OnceCell, RefCell},
    net::IpAddr,
    ops::Deref,
};

use proxy_common::{
    V4, V6,
    decide::{
        self, AffinityHandle, Attempt, Claim, DropReason, FlowHandle, FlowTables, Inserted, NodeAddress,
        NodeTables, PacketContext, Route, RouteKind, ServiceTables, SocketTables, Step, Tables,
    },
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::{Backend, BackendState},
        config::Settings,
        counter::Counter,
        device::Device,
        filter,
        flow::{Flow, FlowDraft, FlowKey, FlowState, Mac, Tuple},
        fragment::{FragmentKey, FragmentPorts},
        frontend::{FrontendKey, Target},
        id::Id,
        outbound::Outbound,
        set::{BackendSet, SetPolicy},
        socket::{ConnectedPeer, SharedKey, SharedPeer, UdpPeersRef},
    },
    packet::Packet,
};

use super::routing::Routing;
use crate::{
    datapath::{address::UserFamily, live::LiveMaps},
    model::plan::IpFamily,
};

/// The interfaces by which a packet that leaves came in and leaves; 0: none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Way {
    pub(super) came_in: u32,
    pub(super) leaves: u32,
}

/// Tables of one run of the core.
pub(super) struct LiveTables<'t, F: UserFamily, M, R> {
    pub(super) maps: &'t M,
    pub(super) routing: &'t R,
    pub(super) settings: Settings,
    /// The core's random number: chooses the backend.
    pub(super) random: u32,
    /// As if nothing was known of this client yet.
    pub(super) without_flows: bool,
    pub(super) way: Way,
    steps: RefCell<Vec<Step<F>>>,
    /// A run chooses one backend at most; the core wants a reference.
    chosen: OnceCell<(u32, Option<Backend<F>>)>,
}

impl<'t, F: UserFamily, M: LiveMaps<F>, R: Routing> LiveTables<'t, F, M, R> {
    pub(super) fn new(
        maps: &'t M,
        routing: &'t R,
        settings: Settings,
        random: u32,
        without_flows: bool,
        way: Way,
    ) -> Self {
        let (steps, chosen) = (RefCell::default(), OnceCell::new());
        Self { maps, routing, settings, random, without_flows, way, steps, chosen }
    }

    /// The steps that were taken.
    pub(super) fn into_steps(self) -> Vec<Step<F>> {
        self.steps.into_inner()
    }
}

/// A copy of a flow entry.
pub(super) struct FlowCopy<F: UserFamily>(Flow<F>);

impl<F: UserFamily> Deref for FlowCopy<F> {
    type Target = Flow<F>;

    fn deref(&self) -> &Flow<F> {
        &self.0
    }
}

impl<F: UserFamily> FlowHandle<F> for FlowCopy<F> {
    fn touch(&self, _now: u32) {}
    fn set_state(&self, _state: FlowState) {}
    fn set_mac(&self, _mac: Mac) {}
    fn set_isn(&self, _isn: u32) {}
    fn set_acknowledged(&self, _acknowledged: u32) {}
    fn set_timestamp(&self, _timestamp: u32) {}
}

/// A copy of an affinity entry.
pub(super) struct AffinityCopy<F: UserFamily>(Affinity<F>);

impl<F: UserFamily> Deref for AffinityCopy<F> {
    type Target = Affinity<F>;

    fn deref(&self) -> &Affinity<F> {
        &self.0
    }
}

impl<F: UserFamily> AffinityHandle<F> for AffinityCopy<F> {
    fn touch(&self, _now: u32) {}
}

impl<F: UserFamily, M: LiveMaps<F>, R: Routing> SocketTables<F> for LiveTables<'_, F, M, R> {
    fn cookie(&self) -> u64 {
        0
    }

    fn netns(&self) -> u64 {
        0
    }

    fn has_socket_storage(&self) -> bool {
        true
    }

    fn connected(&self, _is_wanted: impl Fn(&ConnectedPeer<F>) -> bool) -> Option<ConnectedPeer<F>> {
        None
    }

    fn set_connected(&self, _peer: &mut ConnectedPeer<F>) {}

    fn udp_peers_or_new(&self) -> Option<UdpPeersRef<'_, F>> {
        None
    }

    fn udp_peers(&self) -> Option<UdpPeersRef<'_, F>> {
        None
    }

    fn shared_peer(&self, _key: &SharedKey) -> Option<&SharedPeer<F>> {
        None
    }

    fn set_shared_peer(&self, _key: &SharedKey, _peer: &SharedPeer<F>) -> bool {
        true
    }

    fn netns_address(&self, netns: u64, addr: &mut F::Addr) -> bool {
        self.maps.netns().get(&netns).map(|known| *addr = *known).is_some()
    }
}

impl<F: UserFamily, M: LiveMaps<F>, R: Routing> ServiceTables<F> for LiveTables<'_, F, M, R> {
    type Affinity = AffinityCopy<F>;

    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        [filter::of_address::<F>(addr), filter::of_frontend::<F>(addr, port, protocol)]
            .into_iter()
            .any(|mark| mark.is_in(self.maps.filter(mark.element)))
    }

    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target> {
        // Twice, as the programs do: the entry may be in the middle of a change.
        (0..2).find_map(|_| self.maps.frontend(key)?.checked(key))
    }

    fn set(&self, service: Id, set_policy: SetPolicy) -> BackendSet {
        self.maps.set(BackendSet::index(service, set_policy))
    }

    fn backend(&self, slot: u32) -> Option<&Backend<F>> {
        let (chosen, backend) = self.chosen.get_or_init(|| (slot, self.maps.backend(slot)));
        debug_assert_eq!(*chosen, slot, "a second choice in one run");
        backend.as_ref()
    }

    fn is_alive(&self, backend: Id) -> bool {
        self.maps.alive(BackendState::position(backend).0).holds(backend)
    }

    fn is_member(&self, backend: Id, set_policy: SetPolicy) -> bool {
        self.maps.alive(BackendState::position(backend).0).holds_in(backend, set_policy)
    }

    fn affinity_timeout(&self, service: Id) -> u32 {
        self.maps.set(BackendSet::affinity_index(service)).0 as u32
    }

    fn affinity(&self, key: &AffinityKey<F>) -> Option<AffinityCopy<F>> {
        self.maps.affinity(key).map(AffinityCopy)
    }

    fn remember_affinity(&self, _key: &AffinityKey<F>, _affinity: &Affinity<F>) {}

    fn allows_source(&self, service: Id, addr: &F::Addr) -> bool {
        self.maps.is_allowed(service, addr)
    }

    fn is_service_address(&self, addr: &F::Addr) -> bool {
        self.maps.service_cidrs().contains(addr)
    }
}

impl<F: UserFamily, M: LiveMaps<F>, R: Routing> FlowTables<F> for LiveTables<'_, F, M, R> {
    type Flow = FlowCopy<F>;
    type FlowDraft = Box<FlowDraft<F>>;

    fn draft(&self) -> Option<Box<FlowDraft<F>>> {
        Some(Box::default())
    }

    fn flow(&self, key: &FlowKey<F>) -> Option<FlowCopy<F>> {
        if self.without_flows { None } else { self.maps.flow(key).map(FlowCopy) }
    }

    /// Saves the programs a look-up in the flow map. Here the flow map is always read: time does not matter.
    fn may_be_filtered_reply(&self, _addr: &F::Addr, _port: u16, _protocol: u8) -> bool {
        true
    }

    fn insert_reply(&self, _addr: &F::Addr, _port: u16, _protocol: u8) {}

    fn replace_flow(&self, _key: &FlowKey<F>, _flow: &Flow<F>) -> bool {
        true
    }

    fn remove_flow(&self, _key: &FlowKey<F>) {}

    fn pending(&self, key: &FlowKey<F>) -> Option<FlowCopy<F>> {
        if self.without_flows { None } else { self.maps.pending(key).map(FlowCopy) }
    }

    fn insert_pending(&self, _key: &FlowKey<F>, _flow: &Flow<F>) -> Inserted {
        // The core has removed the entry that gives way; it is not removed here.
        Inserted::Yes
    }

    fn replace_pending(&self, _key: &FlowKey<F>, _flow: &Flow<F>) -> bool {
        true
    }

    fn remove_pending(&self, _key: &FlowKey<F>) {}

    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound> {
        self.maps.outbound(key)
    }

    fn remember_outbound(&self, _key: &FlowKey<F>, _outbound: &Outbound) {}

    fn fragment(&self, _key: &FragmentKey<F>) -> Option<FragmentPorts> {
        None
    }

    fn remember_fragment(&self, _key: &FragmentKey<F>, _ports: &FragmentPorts) {}
}

impl<F: UserFamily, M: LiveMaps<F>, R: Routing> NodeTables<F> for LiveTables<'_, F, M, R> {
    type CachedRoute = Box<Route<F>>;

    fn node_address(&self, addr: &F::Addr) -> NodeAddress {
        self.maps.node_address(addr)
    }

    fn device(&self, ifindex: u32) -> Option<&Device> {
        self.maps.devices().get(&ifindex)
    }

    fn snat_source(&self, index: u32) -> Option<F::Addr> {
        self.maps.snat_source(index)
    }

    fn may_be_snat_source(&self, addr: &F::Addr) -> bool {
        let mark = filter::of_snat_source::<F>(addr);
        mark.is_in(self.maps.filter(mark.element))
    }

    fn route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, _size: u32, route: &mut Route<F>) {
        *route = Route::default();
        // A packet with an address of the node as source has no route by an interface it came in by.
        let (src, dst) = (F::to_ip(src), F::to_ip(dst));
        let Some(hop) = self
            .routing
            .lookup(Some(ifindex), Some(src), dst)
            .or_else(|| self.routing.lookup(None, Some(src), dst))
            .or_else(|| self.routing.lookup(None, None, dst))
        else {
            return;
        };
        route.ifindex = hop.ifindex;
        if hop.is_local {
            route.kind = RouteKind::Local;
            return;
        }
        if let Some(next_hop) = F::from_ip(hop.next_hop) {
            route.next_hop = next_hop;
        }
        match self.routing.neighbour(hop.ifindex, hop.next_hop) {
            Some(mac) => {
                route.kind = RouteKind::Neighbour;
                route.to = mac;
            }
            None => route.kind = RouteKind::Unresolved,
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
        _dst: &F::Addr,
        _preferred: &mut F::Addr,
    ) -> bool {
        false // The trace reports the device's.
    }

    // Sockets cannot be known without the kernel's tables; the explanation mentions it.
    fn has_socket(&self, _tuple: &Tuple<F>, _protocol: u8) -> bool {
        false
    }

    fn has_connection(&self, _namespace: u32, _tuple: &Tuple<F>, _protocol: u8) -> bool {
        false
    }

    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool {
        let ip: IpAddr = match F::FAMILY {
            IpFamily::V4 => V4::to_ip(&device.snat_v4),
            IpFamily::V6 => V6::to_ip(&device.snat_v6),
        };
        let source = F::from_ip(ip).filter(|_| !ip.is_unspecified());
        source.map(|source| *addr = source).is_some()
    }
}

impl<F: UserFamily, M: LiveMaps<F>, R: Routing> PacketContext<F> for LiveTables<'_, F, M, R> {
    fn came_in(&self) -> u32 {
        self.way.came_in
    }

    fn leaves(&self) -> u32 {
        self.way.leaves
    }

    fn acknowledgment(&self, packet: &Packet<F>) -> u32 {
        packet.acknowledgment
    }

    fn timestamp(&self, _packet: &Packet<F>) -> u32 {
        0
    }

    fn size(&self, _packet: &Packet<F>) -> u32 {
        // A short one, such as opens connections.
        0
    }
}

impl<F: UserFamily, M: LiveMaps<F>, R: Routing> Tables<F> for LiveTables<'_, F, M, R> {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn open_flow(&self, draft: &mut FlowDraft<F>) -> Option<DropReason> {
        decide::open(self, draft)
    }

    fn attempt(&self, draft: &mut FlowDraft<F>, claim: Claim) -> Attempt {
        // Insertions always succeed here, and show no port that is in use.
        if claim == Claim::Unused { Attempt::Taken } else { decide::attempt(self, draft, claim) }
    }

    fn confirm_flow(&self, _pair: &mut FlowDraft<F>) -> bool {
        // It stays where it is, and its entry is as good there.
        false
    }

    fn random(&self) -> u32 {
        self.random
    }

    fn now(&self) -> u32 {
        self.maps.now()
    }

    fn count(&self, _counter: Counter) {}

    fn step(&self, step: Step<F>) {
        self.steps.borrow_mut().push(step);
    }
}
