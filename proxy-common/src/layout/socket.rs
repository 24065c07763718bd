//! Addresses that sockets send to. Written by the socket programs.
//!
//! * `peer_cells_v4`, `peer_cells_v6`: ARRAY, connected sockets, as long as their cell is free: see [`PeerCell`].
//! * `connected_v4`, `connected_v6`: SK_STORAGE, the other connected sockets.
//! * `udp_peers_v4`, `udp_peers_v6`: SK_STORAGE, the first VIPs that an unconnected UDP socket sends to. No
//!   other socket can evict them, and the kernel frees them with the socket.
//! * `sockets_v4`, `sockets_v6`: LRU HASH, for all else: further VIPs of a socket, sockets for which the kernel
//!   has no memory for storage, and all sockets on kernels without socket storage. A network namespace has at
//!   most [`SharedKey::PER_NETNS`] entries, so that a pod evicts only its entries.
//!
//! `netns_v4`, `netns_v6`: HASH by network namespace cookie (`u64`) with an address as value, written by the
//! agent: the source of packets of unbound sockets. Read only for frontends with source ranges. A missing
//! namespace is not known yet.

mod cell;
mod shared;
mod stored;

pub use self::{
    cell::{CELLS, Claims, PeerCell, PeerCellRef},
    shared::{SharedKey, SharedPeer, SocketDirection, SocketKey},
    stored::{UdpPeer, UdpPeers, UdpPeersRef},
};
use super::id::Id;
use crate::{Family, V4, V6, packet::ETHERNET};

/// The translation of an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketPeer<F: Family> {
    /// The backend's address, or the VIP.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
    /// When the frontend was last found to lead to the service port: a [`SocketPeer::stamp`].
    pub checked: u16,
    /// The backend.
    pub backend: Id,
    /// The service port.
    pub service: Id,
}

impl<F: Family> SocketPeer<F> {
    /// The part of time in which a check of the frontend is valid: 64 jiffies. It repeats after more than an
    /// hour (4.7 hours at 250 Hz); then one datagram may be sent without a check.
    #[inline(always)]
    pub const fn stamp(now: u32) -> u16 {
        (now >> 6) as u16
    }

    /// Equality by words.
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        F::same(&self.addr, &other.addr)
            & (self.port == other.port)
            & (self.checked == other.checked)
            & (self.backend.0 == other.backend.0)
            & (self.service.0 == other.service.0)
    }
}

/// Record of a connected socket: the VIP that it requested and the backend. The socket may have connected
/// elsewhere since: the entry is valid only while the backend is its peer.
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
    /// The service port.
    pub service: Id,
}

/// The agent's query to the programs `socket_backend4` and `socket_backend6`: the record of the socket with
/// these addresses. They return its backend's [`Id`], or [`Id::NONE`] without record or if that backend is not
/// its peer, and write the [`ConnectedPeer`] over the query.
///
/// The kernel's `struct bpf_sock_tuple`, seen from the peer, and protocol and cookie behind it.
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
    /// TCP; any other value is UDP.
    pub protocol: u32,
    /// The socket's cookie.
    pub cookie: u64,
}

impl<F: Family> SocketQuestion<F> {
    /// Offset in the packet that the programs are run with: behind an Ethernet header of zeros.
    pub const OFFSET: usize = ETHERNET;
    /// Size of the kernel's part of it.
    pub const TUPLE: usize = 2 * size_of::<F::Addr>() + 2 * size_of::<u16>();
}

super::plain!(SocketPeer<F>, ConnectedPeer<F>);

const _: () = {
    assert!(size_of::<SocketPeer<V4>>() == 16 && size_of::<SocketPeer<V6>>() == 28);
    assert!(size_of::<ConnectedPeer<V4>>() == 20 && size_of::<ConnectedPeer<V6>>() == 44);
    assert!(size_of::<SocketQuestion<V4>>() == 24 && size_of::<SocketQuestion<V6>>() == 48);
    assert!(SocketQuestion::<V4>::TUPLE == 12 && SocketQuestion::<V6>::TUPLE == 36);
};
