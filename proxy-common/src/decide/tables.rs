//! What the core asks of its surroundings.

use core::ops::{Deref, DerefMut};

use super::verdict::{DropReason, Verdict};
use crate::{
    Family,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::Backend,
        config::Settings,
        counter::Counter,
        device::{Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        flow::{Edge, Flow, FlowKey, FlowState, Mac, Pair, Tuple},
        fragment::{FragmentKey, FragmentPorts},
        frontend::{FrontendKey, Target},
        id::Id,
        outbound::Outbound,
        set::{Set, SetRole},
        socket::{ConnectedPeer, SharedKey, SharedPeer, SocketPeer, UdpPeersRef},
    },
    packet::Packet,
};

/// A flow entry that was found, read where it is. Others may be changing it; each write is of one field.
pub trait FlowHandle<F: Family>: Deref<Target = Flow<F>> {
    /// Marks it as seen at `now` (jiffies).
    fn touch(&self, now: u32);
    /// Notes what the handshake has come to.
    fn set_state(&self, state: FlowState);
    /// Notes the backend's MAC.
    fn set_mac(&self, mac: Mac);
    /// Notes the initial sequence number of the side whose packets the entry translates.
    fn set_isn(&self, isn: u32);
    /// Notes that side's last acknowledgment number.
    fn set_acknowledged(&self, acknowledged: u32);
    /// Notes the timestamp of the client's FIN.
    fn set_timestamp(&self, timestamp: u32);
}

/// An affinity entry that was found, read where it is. Others may be changing it.
pub trait AffinityHandle<F: Family>: Deref<Target = Affinity<F>> {
    /// Marks it as used at `now` (jiffies).
    fn touch(&self, now: u32);
}

/// Whether an entry was inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Inserted {
    /// It was.
    Yes,
    /// There is one with that key.
    Exists,
    /// The map takes no more.
    NoRoom,
}

/// What an attempt to open a flow with a certain source port came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Attempt {
    /// The flow is open.
    Opened = 0,
    /// Another flow, a socket or kernel NAT has the port.
    Taken = 1,
    /// The map takes no more.
    NoRoom = 2,
}

/// Where the flow of a packet was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Found {
    /// Nowhere, or the packet must choose anew.
    None = 0,
    /// Among the confirmed flows.
    Confirmed = 1,
    /// Among the others.
    Pending = 2,
}

/// May routers fragment a packet?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fragmentable {
    /// No: it is IPv6, or says "don't fragment".
    No,
    /// Yes, and it is a fragment already.
    Fragment,
    /// Yes, and it is whole.
    Whole,
}

/// What a node address is for: `NODE_ADDR_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeAddress(pub u32);

impl NodeAddress {
    /// Does it serve nodePorts?
    #[inline(always)]
    pub fn serves_nodeports(self) -> bool {
        self.0 & NODE_ADDR_NODEPORT != 0
    }

    /// Is it given as source to connections that are passed on?
    #[inline(always)]
    pub fn is_snat_source(self) -> bool {
        self.0 & NODE_ADDR_SNAT != 0
    }
}

/// Where the kernel's routing would send a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RouteKind {
    /// To a process of this node.
    Local,
    /// Out of a device; the neighbour's MAC is known.
    Neighbour,
    /// Out of a device; the neighbour is not resolved yet.
    Unresolved,
    /// Out of a device, but the packet is longer than [`Route::mtu`].
    TooBig,
    /// Out of a device, but only the kernel's IP stack may send it: programs cannot send there, or an IPsec policy is for the
    /// destination.
    Stack,
    /// Nowhere, or routing is for the stack to decide.
    None,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route<F: Family> {
    /// How it ends.
    pub kind: RouteKind,
    /// Index of the device it leaves by.
    pub ifindex: u32,
    /// The neighbour, if [`Self::names_next_hop`].
    pub next_hop: F::Addr,
    /// False where the kernel must find the neighbour when it sends: it has an address of the other family (RFC 5549), or the device is a
    /// tunnel that takes its remote end from the route.
    pub names_next_hop: bool,
    /// The stack sends what takes this route, whatever its size: it is [`RouteKind::Stack`], or would be if the packet were shorter.
    pub by_stack: bool,
    /// Source MAC, with [`RouteKind::Neighbour`].
    pub from: Mac,
    /// Destination MAC, with [`RouteKind::Neighbour`].
    pub to: Mac,
    /// Longest IP packet in bytes, with [`RouteKind::TooBig`].
    pub mtu: u32,
}

impl<F: Family> Route<F> {
    /// How much whoever sends a packet this way must take off its hop limit: the stack does it itself.
    #[inline(always)]
    pub fn hops(&self) -> u8 {
        !matches!(self.kind, RouteKind::Stack) as u8
    }
}

impl<F: Family> Default for Route<F> {
    #[inline(always)]
    fn default() -> Self {
        Self {
            kind: RouteKind::None,
            ifindex: 0,
            next_hop: F::UNSPECIFIED,
            names_next_hop: false,
            by_stack: false,
            from: Mac::NONE,
            to: Mac::NONE,
            mtu: 0,
        }
    }
}

/// A step that the core took; for people. Costs nothing where [`Tables::step`] is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<F: Family> {
    /// The filter says that the destination is no frontend.
    NoFrontendSurely,
    /// A known flow.
    KnownFlow(Flow<F>),
    /// A flow whose backend is gone or whose connection is over.
    StaleFlow(Flow<F>),
    /// A frontend with exactly this address.
    Frontend(Target),
    /// A nodePort at one of the node's addresses.
    NodePort(Target),
    /// No frontend.
    NoFrontend,
    /// A cluster IP, but none of its ports.
    UndefinedPort(Target),
    /// A cluster IP, and the client is outside.
    ClusterIpFromOutside(Target),
    /// A packet to a frontend that belongs to no flow and asks for none: the kernel's business.
    NoRequest,
    /// A datagram to a frontend that is a reply to what this node sent from there.
    ReplyToNode,
    /// The set for this frontend and client.
    Set(SetRole, Set),
    /// The backend that was chosen.
    Backend(Backend<F>),
    /// The backend that the client had before.
    Kept(Affinity<F>),
    /// The route to the backend.
    Route(Route<F>),
    /// Client and backend are the same pod.
    Hairpin,
    /// Dropped.
    Drop(DropReason),
    /// Answers are recognised by this tuple, as the backend sends it.
    Answer(Tuple<F>),
}

/// The maps and helpers that packets need.
pub trait Tables<F: Family> {
    /// A flow entry.
    type Flow: FlowHandle<F>;
    /// An affinity entry.
    type Affinity: AffinityHandle<F>;
    /// Room for both entries of a flow.
    type Pair: DerefMut<Target = Pair<F>>;
    /// A route that was asked for a moment ago, where it is kept.
    type KnownRoute: Deref<Target = Route<F>>;

    /// Room for both entries of a flow, with anything in it; none is a defect.
    fn pair(&self) -> Option<Self::Pair>;

    /// Constants of this node.
    fn settings(&self) -> Settings;
    /// The filter: false means surely no frontend.
    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool;
    /// What a frontend leads to.
    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target>;
    /// The backends of a service port.
    fn set(&self, service: Id, role: SetRole) -> Set;
    /// One backend.
    fn backend(&self, slot: u32) -> Option<&Backend<F>>;
    /// Does the backend still serve?
    fn is_alive(&self, backend: Id) -> bool;
    /// Does it, and is it in the set of this role?
    fn is_member(&self, backend: Id, role: SetRole) -> bool;
    /// How long a client of a service port keeps its backend, in jiffies.
    fn affinity_timeout(&self, service: Id) -> u32;
    /// The backend that a client had.
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Self::Affinity>;
    /// Remembers it, if the map takes it.
    fn remember_affinity(&self, key: &AffinityKey<F>, affinity: &Affinity<F>);
    /// May this client use the service port's frontends that have source ranges?
    fn allows_source(&self, service: Id, addr: &F::Addr) -> bool;
    /// Is the address in a range of service addresses?
    fn is_service_address(&self, addr: &F::Addr) -> bool;
    /// What a node address is for; nothing for other addresses.
    fn node_address(&self, addr: &F::Addr) -> NodeAddress;
    /// A device, if it is known.
    fn device(&self, ifindex: u32) -> Option<&Device>;
    /// A flow.
    fn flow(&self, key: &FlowKey<F>) -> Option<Self::Flow>;
    /// May a packet from there be an answer that [`Edge::ReverseEgress`] tells? False
    /// means that none is announced. The port in network byte order.
    fn may_be_answer(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool;
    /// Announces such answers. To be called before their entry is inserted.
    fn announce_answers(&self, addr: &F::Addr, port: u16, protocol: u8);
    /// Inserts or replaces a flow entry; false if the map takes no more.
    fn replace_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    /// Removes a flow entry.
    fn remove_flow(&self, key: &FlowKey<F>);
    /// A flow that is not confirmed.
    fn pending(&self, key: &FlowKey<F>) -> Option<Self::Flow>;
    /// Inserts an entry of an unconfirmed flow if there is none with that key.
    fn insert_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Inserted;
    /// Inserts or replaces an entry of an unconfirmed flow; false if the map takes no more.
    fn replace_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    /// Removes an entry of an unconfirmed flow.
    fn remove_pending(&self, key: &FlowKey<F>);
    /// Opens the flow that [`Tables::pair`] has, with [`open`](super::open); returns why it could not be. In the kernel that is a
    /// function of its own.
    fn open_flow(&self, pair: &mut Pair<F>) -> Option<DropReason>;
    /// The flow that a packet belongs to at a lookup point, with [`find`](super::find). In the kernel a function of its own, so that the verifier goes through
    /// connection tracking once.
    #[inline(always)]
    fn find_flow(&self, packet: &Packet<F>, edge: Edge) -> Option<Self::Flow>
    where
        Self: Sized,
    {
        let key = &FlowKey::new(packet.tuple, packet.protocol, edge);
        match super::find(self, packet, key) {
            Found::None => None,
            Found::Confirmed => self.flow(key),
            // Confirmed meanwhile, maybe.
            Found::Pending => self.pending(key).or_else(|| self.flow(key)),
        }
    }
    /// Is the caller asked to choose a backend, and to open a flow? In the kernel, what is done with a packet comes one after the other and not one in the
    /// other: a chain of calls has 512 bytes of stack.
    #[inline(always)]
    fn defers(&self) -> bool {
        false
    }
    /// Tries to open the flow that [`Tables::pair`] has with the source port in it, with [`attempt`](super::attempt). In the kernel a
    /// function of its own.
    fn attempt(&self, pair: &mut Pair<F>, seize: bool) -> Attempt;
    /// Moves the flow of which [`Tables::pair`] has an entry to the confirmed ones, with [`confirm`](super::confirm). In the kernel a
    /// function of its own.
    fn confirm_flow(&self, pair: &mut Pair<F>) -> bool;
    /// A source address for connections to remote endpoints, of those that were given.
    fn snat_source(&self, index: u32) -> Option<F::Addr>;
    /// May the address be one that connections to remote endpoints have as source? False means surely not.
    fn may_be_snat_source(&self, addr: &F::Addr) -> bool;
    /// When the node last sent what this is the tuple of a reply to, from an address and port that are ours as well.
    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound>;
    /// Remembers it.
    fn remember_outbound(&self, key: &FlowKey<F>, outbound: &Outbound);
    /// Index of the device by which a packet that leaves came in; 0 if it is the node's own.
    fn came_in(&self) -> u32;
    /// Index of the device by which a packet that leaves does so.
    fn leaves(&self) -> u32;
    /// The acknowledgment number of a TCP packet with plain headers. Read where the packet is: keeping it from the parse would take stack.
    fn acknowledgment(&self, packet: &Packet<F>) -> u32;
    /// The timestamp of a TCP packet with SYN or FIN, where it stands in the headers that common systems write; 0: none.
    fn timestamp(&self, packet: &Packet<F>) -> u32;
    /// The ports that the first fragment of a packet had.
    fn fragment(&self, key: &FragmentKey<F>) -> Option<FragmentPorts>;
    /// Remembers them.
    fn remember_fragment(&self, key: &FragmentKey<F>, ports: &FragmentPorts);
    /// How long a packet is in bytes, from the network header on; if devices are to cut it, the longest piece.
    fn size(&self, packet: &Packet<F>) -> u32;
    /// May routers fragment the packet, where the stack can be handed one?
    fn fragmentable(&self, packet: &Packet<F>) -> Fragmentable {
        let _ = packet;
        Fragmentable::No
    }
    /// Routing of what comes in by the device with index `ifindex`: of a packet of `size` bytes, or with 0 whatever its size. For
    /// packets with a size it may be what was so a moment ago.
    fn route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32, route: &mut Route<F>);
    /// The same of a packet that has a size, without a copy; none is a defect.
    fn known_route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32) -> Option<Self::KnownRoute>;
    /// The source address that the route of such a packet prefers; false if that is not known.
    fn preferred_source(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, preferred: &mut F::Addr) -> bool;
    /// Would a socket of this node take the packet?
    fn has_socket(&self, tuple: &Tuple<F>, protocol: u8) -> bool;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Jiffies, truncated.
    fn now(&self) -> u32;
    /// Counts.
    fn count(&self, counter: Counter);
    /// The address to give as source to what leaves by a device; false if there is none.
    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool;
    /// Counts a packet that is dropped.
    #[inline(always)]
    fn drop(&self, reason: DropReason) -> Verdict {
        self.count(reason.counter());
        self.step(Step::Drop(reason));
        Verdict::Drop
    }
    /// Counts a packet that is answered instead of being sent on. Not where another program will be asked the same.
    #[inline(always)]
    fn answer(&self, counter: Counter, verdict: Verdict) -> Verdict {
        self.count(counter);
        verdict
    }
    /// Tells a step.
    #[inline(always)]
    fn step(&self, step: Step<F>) {
        let _ = step;
    }
}

/// What sockets need besides. All but the map is of the socket at hand.
pub trait SocketTables<F: Family>: Tables<F> {
    /// The kernel's cookie of the socket.
    fn cookie(&self) -> u64;
    /// The cookie of its network namespace.
    fn netns(&self) -> u64;
    /// Can sockets keep something themselves?
    fn has_socket_storage(&self) -> bool;
    /// What it asked for and got when it connected.
    fn connected(&self) -> Option<ConnectedPeer<F>>;
    /// Keeps that, if there is memory.
    fn set_connected(&self, peer: &mut ConnectedPeer<F>);
    /// What it keeps of the VIPs that it sends to, made if need be; `None` where that cannot be.
    fn udp_peers_or_new(&self) -> Option<UdpPeersRef<'_, F>>;
    /// The same, not made.
    fn udp_peers(&self) -> Option<UdpPeersRef<'_, F>>;
    /// What stands at a place of the map that all sockets share.
    fn shared_peer(&self, key: &SharedKey) -> Option<&SharedPeer<F>>;
    /// Writes it; false if the map takes no more.
    fn set_shared_peer(&self, key: &SharedKey, peer: &SharedPeer<F>) -> bool;
    /// The address that sockets of a network namespace send from, by the namespace's cookie; false if it is not known.
    fn netns_address(&self, netns: u64, addr: &mut F::Addr) -> bool;
    /// The socket asked for an address (port in network byte order) and got an endpoint that it did not have yet. In the kernel
    /// `proxy-agent monitor` may look on.
    #[inline(always)]
    fn chosen(&self, addr: &F::Addr, port: u16, protocol: u8, peer: &SocketPeer<F>) {
        let _ = (addr, port, protocol, peer);
    }
    /// The socket asked for an address and is refused: counts it. In the kernel `proxy-agent monitor` may look on.
    #[inline(always)]
    fn refuse(&self, counter: Counter, addr: &F::Addr, port: u16, protocol: u8) {
        let _ = (addr, port, protocol);
        self.count(counter);
    }
}
