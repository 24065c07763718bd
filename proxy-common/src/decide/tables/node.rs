//! The node that the program runs on.

use core::ops::Deref;

use crate::{
    Family,
    layout::{
        device::{Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        flow::{Mac, Tuple},
    },
};

/// What a node address is for: `NODE_ADDR_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeAddress(pub u32);

impl NodeAddress {
    /// Does it serve nodePorts?
    #[inline(always)]
    pub fn serves_nodeports(self) -> bool {
        self.0 & NODE_ADDR_NODEPORT != 0
    }

    /// Is it given as source to forwarded connections?
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
    /// By how much the sender on this route lowers the hop limit: the stack does it itself.
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
    /// A route that was asked for a moment ago, where it is kept.
    type CachedRoute: Deref<Target = Route<F>>;
    /// What a node address is for; nothing for other addresses.
    fn node_address(&self, addr: &F::Addr) -> NodeAddress;
    /// A device, if it is known.
    fn device(&self, ifindex: u32) -> Option<&Device>;
    /// A source address for connections to remote endpoints, of those that were given.
    fn snat_source(&self, index: u32) -> Option<F::Addr>;
    /// May the address be one that connections to remote endpoints have as source? False means surely not.
    fn may_be_snat_source(&self, addr: &F::Addr) -> bool;
    /// Routing of what comes in by the device with index `ifindex`: of a packet of `size` bytes, or with 0 whatever its size. For
    /// packets with a size it may be what was so a moment ago.
    fn route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32, route: &mut Route<F>);
    /// The same of a packet that has a size, without a copy; none is a defect.
    fn cached_route(
        &self,
        ifindex: u32,
        src: &F::Addr,
        dst: &F::Addr,
        size: u32,
    ) -> Option<Self::CachedRoute>;
    /// The source address that the route of such a packet prefers; false if that is not known.
    fn preferred_source(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, preferred: &mut F::Addr) -> bool;
    /// Would a socket of this node take the packet?
    fn has_socket(&self, tuple: &Tuple<F>, protocol: u8) -> bool;
    /// Does a socket in the client's network namespace have a connection whose replies have this tuple? The namespace is known as in
    /// [`Device::peer_namespace`].
    fn has_connection(&self, namespace: u32, tuple: &Tuple<F>, protocol: u8) -> bool;
    /// The address to give as source to what leaves by a device; false if there is none.
    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool;
}
