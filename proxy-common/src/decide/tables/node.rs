//! The node that the program runs on.

use core::ops::Deref;

use crate::{
    Family,
    layout::{
        device::{Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        flow::{Mac, Tuple},
    },
};

/// The uses of a node address: `NODE_ADDR_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeAddress(pub u32);

impl NodeAddress {
    /// Whether it serves nodePorts.
    #[inline(always)]
    pub fn serves_nodeports(self) -> bool {
        self.0 & NODE_ADDR_NODEPORT != 0
    }

    /// Whether forwarded connections get it as source.
    #[inline(always)]
    pub fn is_snat_source(self) -> bool {
        self.0 & NODE_ADDR_SNAT != 0
    }
}

/// Result of a route look-up.
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
    /// No route, or only the stack can decide.
    None,
}

/// A route. Programs of two releases may share those in `hop_routes_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Route<F: Family> {
    /// The kind of route.
    pub kind: RouteKind,
    /// Index of the device it leaves by.
    pub ifindex: u32,
    /// The neighbour's address, if [`Self::names_next_hop`].
    pub next_hop: F::Addr,
    /// False where the kernel must find the neighbour when it sends: the neighbour has an address of the other
    /// family (RFC 5549), or the device is a tunnel that takes its remote end from the route.
    pub names_next_hop: bool,
    /// The stack sends packets of any size by this route: it is [`RouteKind::Stack`], or would be if the packet
    /// were shorter.
    pub by_stack: bool,
    /// Source MAC, with [`RouteKind::Neighbour`].
    pub from: Mac,
    /// Destination MAC, with [`RouteKind::Neighbour`].
    pub to: Mac,
    /// MTU of the route in bytes, with [`RouteKind::TooBig`].
    pub mtu: u32,
}

impl<F: Family> Route<F> {
    /// The number that the sender on this route subtracts from the hop limit; 0 where the stack does it.
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

/// The node: its addresses, devices, routes and sockets.
pub trait NodeTables<F: Family> {
    /// A route in the cache.
    type CachedRoute: Deref<Target = Route<F>>;
    /// The uses of a node address; none for other addresses.
    fn node_address(&self, addr: &F::Addr) -> NodeAddress;
    /// A device, if it is known.
    fn device(&self, ifindex: u32) -> Option<&Device>;
    /// A configured source address for connections to remote endpoints.
    fn snat_source(&self, index: u32) -> Option<F::Addr>;
    /// Whether connections to remote endpoints may have the address as source. False is certain.
    fn may_be_snat_source(&self, addr: &F::Addr) -> bool;
    /// The route of a packet of `size` bytes (0: of any size) that comes in by the device with index `ifindex`.
    /// With a size, the result may be a cached one.
    fn route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32, route: &mut Route<F>);
    /// The same for a packet with a size, without a copy; `None` is a defect.
    fn cached_route(
        &self,
        ifindex: u32,
        src: &F::Addr,
        dst: &F::Addr,
        size: u32,
    ) -> Option<Self::CachedRoute>;
    /// The source address that the route of such a packet prefers; false if it is not known.
    fn preferred_source(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, preferred: &mut F::Addr) -> bool;
    /// The source of flows to the endpoint `dst` whose requests come in by this device, if one was opened a moment
    /// ago; else false, and `source` stays as it is.
    fn recent_source(&self, ifindex: u32, dst: &F::Addr, source: &mut F::Addr) -> bool {
        let _ = (ifindex, dst, source);
        false
    }
    /// Records it for the next flows.
    fn remember_source(&self, ifindex: u32, dst: &F::Addr, source: &F::Addr) {
        let _ = (ifindex, dst, source);
    }
    /// Whether a socket of this node would receive the packet.
    fn has_socket(&self, tuple: &Tuple<F>, protocol: u8) -> bool;
    /// Whether a socket in the client's network namespace has a connection whose replies have this tuple.
    /// `namespace` is a [`Device::peer_namespace`].
    fn has_connection(&self, namespace: u32, tuple: &Tuple<F>, protocol: u8) -> bool;
    /// The source address for packets that leave by a device; false if it has none.
    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool;
}
