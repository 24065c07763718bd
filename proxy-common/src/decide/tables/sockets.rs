//! Sockets.

use super::Tables;
use crate::{
    Family,
    decide::{SocketClient, SocketVerdict},
    layout::{
        counter::Counter,
        socket::{ConnectedPeer, SharedKey, SharedPeer, SocketPeer, UdpPeersRef},
    },
};

/// The additional maps and helpers for sockets. All but the shared map are about the current socket.
pub trait SocketTables<F: Family>: Tables<F> {
    /// The kernel's cookie of the socket.
    fn cookie(&self) -> u64;
    /// The cookie of its network namespace.
    fn netns(&self) -> u64;
    /// Whether the kernel has socket storage.
    fn has_socket_storage(&self) -> bool;
    /// The VIP that it connected to, and the backend, if that is the wanted record.
    fn connected(&self, is_wanted: impl Fn(&ConnectedPeer<F>) -> bool) -> Option<ConnectedPeer<F>>;
    /// Stores that, if the kernel has memory.
    fn set_connected(&self, peer: &mut ConnectedPeer<F>);
    /// The socket's storage of VIPs that it sends to, created if needed; `None` where the kernel cannot create
    /// it.
    fn udp_peers_or_new(&self) -> Option<UdpPeersRef<'_, F>>;
    /// The same, if it exists.
    fn udp_peers(&self) -> Option<UdpPeersRef<'_, F>>;
    /// The entry in a slot of the map that all sockets share.
    fn shared_peer(&self, key: &SharedKey) -> Option<&SharedPeer<F>>;
    /// Writes it; false if the map is full.
    fn set_shared_peer(&self, key: &SharedKey, peer: &SharedPeer<F>) -> bool;
    /// The address that sockets of a network namespace send from, by the namespace's cookie; false if it is not
    /// known.
    fn netns_address(&self, netns: u64, addr: &mut F::Addr) -> bool;
    /// Chooses the backend for an address that the socket requests, with [`translate`](crate::decide::translate). A separate function in the
    /// kernel, so that the verifier checks it once, not for each call with the state of the caller.
    #[inline(always)]
    fn translate(
        &self,
        addr: &F::Addr,
        port: u16,
        protocol: u8,
        client: &SocketClient<F>,
        peer: &mut SocketPeer<F>,
    ) -> SocketVerdict
    where
        Self: Sized,
    {
        crate::decide::translate(self, addr, port, protocol, client, peer)
    }
    /// Finds the backend that the shared map has, with [`find_shared`](crate::decide::find_shared). A separate function in the kernel.
    #[inline(always)]
    fn find_shared(
        &self,
        addr: &F::Addr,
        port: u16,
        protocol: u8,
        client: &SocketClient<F>,
        peer: &mut SocketPeer<F>,
    ) -> bool
    where
        Self: Sized,
    {
        crate::decide::find_shared(self, addr, port, protocol, client, peer)
    }
    /// Writes the entries of the shared map, with [`share`](crate::decide::share). A separate function in the kernel.
    #[inline(always)]
    fn share(&self, addr: &F::Addr, port: u16, peer: &SocketPeer<F>) -> bool
    where
        Self: Sized,
    {
        crate::decide::share(self, addr, port, peer)
    }
    /// The socket requested an address (port in network byte order) and got a new endpoint. In the kernel this
    /// is also an event for `proxy-agent monitor`.
    #[inline(always)]
    fn chosen(&self, addr: &F::Addr, port: u16, protocol: u8, peer: &SocketPeer<F>) {
        let _ = (addr, port, protocol, peer);
    }
    /// The socket requested an address and is rejected: counts it. In the kernel this is also an event for
    /// `proxy-agent monitor`.
    #[inline(always)]
    fn reject(&self, counter: Counter, addr: &F::Addr, port: u16, protocol: u8) {
        let _ = (addr, port, protocol);
        self.count(counter);
    }
}
