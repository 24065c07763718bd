//! Addresses as processes see them: the VIP that they requested, not the backend.

use super::{shared_peers, tables::SocketTables};
use crate::{
    Family,
    layout::socket::{ConnectedPeer, SharedPeer, SocketDirection, SocketKey, SocketPeer, UdpPeers},
};

/// An address as a process sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen<F: Family> {
    /// The VIP.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
}

/// Records that a socket connected to a VIP and got a backend. If the map is full the connection works, and
/// shows the backend as its peer.
#[inline(always)]
pub fn remember_connected<F: Family, T: SocketTables<F>>(
    tables: &T,
    vip: &F::Addr,
    vip_port: u16,
    peer: &SocketPeer<F>,
) {
    let SocketPeer { addr: backend, port: backend_port, backend: backend_id, service, .. } = *peer;
    // Stored in one place only: the agent finds sockets whose endpoint is gone in either of them.
    if tables.has_socket_storage() {
        tables.set_connected(&mut ConnectedPeer {
            vip: *vip,
            backend,
            vip_port,
            backend_port,
            backend_id,
            service,
        });
        return;
    }
    let key = SocketKey::new(tables.cookie(), backend, backend_port, SocketDirection::Receive);
    let seen = SocketPeer { addr: *vip, port: vip_port, ..*peer };
    let _ = shared_peers::set(tables, &SharedPeer::new(key, seen));
}

/// The peer that a connected socket shows instead of this one, if any; the port in network byte order.
#[inline(always)]
pub fn peer_name<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    seen: &mut Seen<F>,
) -> bool {
    if tables.has_socket_storage() {
        connected(tables, addr, port, seen)
    } else {
        shared(tables, addr, port, seen)
    }
}

/// The source that a datagram for a socket shows instead of this one, if any; the port in network byte order.
#[inline(always)]
pub fn datagram_source<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    seen: &mut Seen<F>,
) -> bool {
    let mut is_own = false;
    if tables.has_socket_storage() {
        if connected(tables, addr, port, seen) {
            return true;
        }
        let Some(own) = tables.udp_peers() else { return false };
        // Several VIPs may have this backend: then the reply shows the VIP that the socket sent to last.
        let last = own.last();
        let first = u32::from(last == 1);
        is_own = own.find_from(first, addr, port, &mut seen.addr, &mut seen.port)
            || own.find_from(1 - first, addr, port, &mut seen.addr, &mut seen.port);
        if !own.shares() || is_own && last != UdpPeers::<F>::SHARED {
            return is_own;
        }
    }
    shared(tables, addr, port, seen) || is_own
}

#[inline(always)]
fn connected<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    seen: &mut Seen<F>,
) -> bool {
    let is_backend = |kept: &ConnectedPeer<F>| F::same(&kept.backend, addr) && kept.backend_port == port;
    let Some(kept) = tables.connected(is_backend) else { return false };
    *seen = Seen { addr: kept.vip, port: kept.vip_port };
    true
}

#[inline(always)]
fn shared<F: Family, T: SocketTables<F>>(tables: &T, addr: &F::Addr, port: u16, seen: &mut Seen<F>) -> bool {
    let key = SocketKey::new(tables.cookie(), *addr, port, SocketDirection::Receive);
    let mut entry = SharedPeer::new(key, SocketPeer::default());
    let is_found = shared_peers::get(tables, &mut entry);
    if is_found {
        *seen = Seen { addr: entry.peer.addr, port: entry.peer.port };
    }
    is_found
}
