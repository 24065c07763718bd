//! Sockets.

use super::Tables;
use crate::{
    Family,
    layout::{
        counter::Counter,
        socket::{ConnectedPeer, SharedKey, SharedPeer, SocketPeer, UdpPeersRef},
    },
};

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
    /// The socket asked for an address and is rejected: counts it. In the kernel `proxy-agent monitor` may look on.
    #[inline(always)]
    fn reject(&self, counter: Counter, addr: &F::Addr, port: u16, protocol: u8) {
        let _ = (addr, port, protocol);
        self.count(counter);
    }
}
