//! `sockets_v4`, `sockets_v6`: LRU HASH, unconnected UDP sockets. `peers_v4`, `peers_v6`: SK_STORAGE, connected sockets,
//! which kernels without socket storage keep among the others. Written by the socket programs.
//!
//! `netns_v4`, `netns_v6`: HASH by network namespace cookie (`u64`) with an address as value, written by the agent: where a
//! socket that is bound to no address will send from. Read only for frontends with source ranges. A namespace that is
//! missing is not known yet.

use super::id::Id;
use crate::{Family, V4, V6, packet::ETHERNET};

/// In which direction a socket's entry translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum SocketDirection {
    /// VIP to backend: the socket keeps its backend from datagram to datagram.
    Send = 0,
    /// Backend to VIP: where an answer seems to come from.
    Receive = 1,
}

/// One address a socket talks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SocketKey<F: Family> {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// Where the datagram goes to, or comes from.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
    /// A [`SocketDirection`].
    pub direction: u16,
    pad: F::Pad,
}

impl<F: Family> SocketKey<F> {
    /// A key; the port in network byte order.
    #[inline(always)]
    pub fn new(cookie: u64, addr: F::Addr, port: u16, direction: SocketDirection) -> Self {
        Self { cookie, addr, port, direction: direction as u16, pad: F::Pad::default() }
    }
}

/// What that address is translated to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketPeer<F: Family> {
    /// The backend's address, or the VIP.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
    /// Always 0.
    pub zero: u16,
    /// The backend.
    pub backend: Id,
    /// The service port.
    pub service: Id,
}

/// Kept with a connected socket: what it asked for and what it got. It may have connected elsewhere since: it is of a
/// socket only while the backend is its peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectedPeer<F: Family> {
    /// The VIP.
    pub vip: F::Addr,
    /// The backend's address.
    pub backend: F::Addr,
    /// The VIP's port, network byte order.
    pub vip_port: u16,
    /// The backend's port, network byte order.
    pub backend_port: u16,
    /// The backend.
    pub backend_id: Id,
}

/// What the agent asks the programs `socket_backend4` and `socket_backend6`: which backend does the socket with these
/// addresses keep? They return its [`Id`], or [`Id::NONE`] if it keeps none or that is not its peer.
///
/// The kernel's `struct bpf_sock_tuple`, seen from the peer, and the protocol behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketQuestion<F: Family> {
    /// The address of the socket's peer.
    pub peer: F::Addr,
    /// The socket's own address.
    pub local: F::Addr,
    /// The peer's port, network byte order.
    pub peer_port: u16,
    /// The socket's own port, network byte order.
    pub local_port: u16,
    /// TCP or else UDP.
    pub protocol: u32,
}

impl<F: Family> SocketQuestion<F> {
    /// Where it is in the packet that the programs are run with: behind an Ethernet header of zeros.
    pub const OFFSET: usize = ETHERNET;
    /// Size of the kernel's part of it.
    pub const TUPLE: usize = 2 * size_of::<F::Addr>() + 2 * size_of::<u16>();
}

super::plain!(SocketKey<F>, SocketPeer<F>, ConnectedPeer<F>);

const _: () = {
    assert!(size_of::<SocketKey<V4>>() == 16 && size_of::<SocketKey<V6>>() == 32);
    assert!(size_of::<SocketPeer<V4>>() == 16 && size_of::<SocketPeer<V6>>() == 28);
    assert!(size_of::<ConnectedPeer<V4>>() == 16 && size_of::<ConnectedPeer<V6>>() == 40);
    assert!(size_of::<SocketQuestion<V4>>() == 16 && size_of::<SocketQuestion<V6>>() == 40);
    assert!(SocketQuestion::<V4>::TUPLE == 12 && SocketQuestion::<V6>::TUPLE == 36);
};
