//! The socket path, which the cgroup programs run.

use super::{
    frontend::{self, Choice},
    shared_peers,
    tables::{SocketTables, Step},
    verdict::{DropReason, SocketVerdict},
};
use crate::{
    Family,
    layout::{
        backend::Backend,
        counter::Counter,
        frontend::{FRONTEND_SOURCE_RANGES, Target},
        set::Scope,
        socket::{SharedPeer, SocketDirection, SocketKey, SocketPeer, UdpPeers, UdpPeersRef},
    },
};

/// The network namespace that a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketOrigin {
    /// The node's network namespace: loopback nodePorts work.
    Node,
    /// A pod's network namespace.
    Pod,
}

/// The client of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketClient<F: Family> {
    /// The network namespace it belongs to.
    pub origin: SocketOrigin,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The address it is bound to, or unspecified.
    pub bound: F::Addr,
}

impl<F: Family> SocketClient<F> {
    /// Whether it is an address where nodePorts are served to this client alone.
    #[inline(always)]
    fn is_node_loopback(&self, addr: &F::Addr) -> bool {
        F::is_loopback(addr) && matches!(self.origin, SocketOrigin::Node)
    }
}

/// Whether a socket that asks for this address may get a backend. Most addresses that are no frontend are recognised here, before
/// the client is looked at.
#[inline(always)]
pub fn may_be_translated<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
) -> bool {
    F::is_loopback(addr) || tables.may_be_frontend(addr, port, protocol)
}

/// A socket connects to an address; the port in network byte order. `peer` becomes the backend.
#[inline(always)]
pub fn connect<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    peer: &mut SocketPeer<F>,
) -> SocketVerdict {
    let verdict = tables.translate(addr, port, protocol, client, peer);
    if matches!(verdict, SocketVerdict::Translate) {
        tables.count(Counter::SocketConnect);
    }
    verdict
}

/// A socket sends a datagram to an explicit address; the port in network byte order. `peer` becomes the
/// backend.
///
/// The socket keeps its backend while that serves and the frontend leads to the same service port; replies from
/// it seem to come from the VIP. A socket that is connected to that VIP (`is_connected`) receives from no other
/// source: it gets the same backend.
#[inline(always)]
pub fn send<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    is_connected: bool,
    peer: &mut SocketPeer<F>,
) -> SocketVerdict {
    // Before storage is allocated.
    if !client.is_node_loopback(addr) && !tables.may_be_frontend(addr, port, protocol) {
        tables.step(Step::NoFrontendSurely);
        return SocketVerdict::Pass;
    }
    if is_connected
        && let Some(connected) = tables.connected(|kept| F::same(&kept.vip, addr) && kept.vip_port == port)
        && tables.is_alive(connected.backend_id)
    {
        peer.addr = connected.backend;
        peer.port = connected.backend_port;
        tables.count(Counter::SocketSend);
        return SocketVerdict::Translate;
    }
    let own = tables.udp_peers_or_new();
    if own.is_none() && tables.has_socket_storage() {
        // Out of memory. Replies would come from an unknown address, so nothing is sent.
        tables.count(Counter::FlowMapFull);
        return SocketVerdict::Reject;
    }
    let slot = own.as_ref().map_or(PeerSlot::Shared, |own| peer_slot(tables, own, addr, port, peer));
    let (Some(own), PeerSlot::Kept(index) | PeerSlot::Free(index)) = (&own, slot) else {
        let verdict = send_by_shared_map(tables, addr, port, protocol, client, peer);
        if let (SocketVerdict::Translate, Some(own)) = (verdict, &own) {
            own.set_last(UdpPeers::<F>::SHARED);
        }
        return verdict;
    };
    let is_kept = matches!(slot, PeerSlot::Kept(_));
    let stamp = SocketPeer::<F>::stamp(tables.now());
    let is_checked = peer.checked == stamp;
    let is_current = is_kept && is_current(tables, addr, port, protocol, client, is_checked, peer);
    if !is_current {
        if is_kept {
            own.clear(index);
        }
        let verdict = tables.translate(addr, port, protocol, client, peer);
        if !matches!(verdict, SocketVerdict::Translate) {
            return verdict;
        }
    }
    if !is_current || !is_checked {
        peer.checked = stamp;
        own.set(index, addr, port, peer);
    }
    own.set_last(index as u16);
    tables.count(Counter::SocketSend);
    SocketVerdict::Translate
}

/// Sends by the map that all sockets share: the socket's own storage has no room for the address, or the kernel has no such storage.
#[inline(always)]
fn send_by_shared_map<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    peer: &mut SocketPeer<F>,
) -> SocketVerdict {
    if !tables.find_shared(addr, port, protocol, client, peer) {
        let verdict = tables.translate(addr, port, protocol, client, peer);
        if !matches!(verdict, SocketVerdict::Translate) {
            return verdict;
        }
    }
    if !tables.share(addr, port, peer) {
        tables.count(Counter::FlowMapFull);
        return SocketVerdict::Reject;
    }
    tables.count(Counter::SocketSend);
    SocketVerdict::Translate
}

/// Finds the backend that the shared map has for a socket's address; false if it has none, or it does not serve any more.
#[inline(always)]
pub fn find_shared<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    peer: &mut SocketPeer<F>,
) -> bool {
    let mut entry = SharedPeer::default();
    entry.key = SocketKey::new(tables.cookie(), *addr, port, SocketDirection::Send);
    if !shared_peers::get(tables, &mut entry) {
        return false;
    }
    *peer = entry.peer;
    let is_checked = peer.checked == SocketPeer::<F>::stamp(tables.now());
    is_current(tables, addr, port, protocol, client, is_checked, peer)
}

/// Storage for a socket's entry for an address.
#[derive(Clone, Copy)]
enum PeerSlot {
    /// The socket's storage has the entry, in this slot.
    Kept(u32),
    /// The socket's storage has room, in this slot.
    Free(u32),
    /// The map that all sockets share.
    Shared,
}

#[inline(always)]
fn peer_slot<F: Family, T: SocketTables<F>>(
    tables: &T,
    own: &UdpPeersRef<'_, F>,
    addr: &F::Addr,
    port: u16,
    peer: &mut SocketPeer<F>,
) -> PeerSlot {
    if own.find_to(0, addr, port, peer) {
        PeerSlot::Kept(0)
    } else if own.find_to(1, addr, port, peer) {
        PeerSlot::Kept(1)
    } else if !tables.is_alive(own.backend(0)) {
        // An entry whose backend is gone is unused.
        PeerSlot::Free(0)
    } else if !tables.is_alive(own.backend(1)) {
        PeerSlot::Free(1)
    } else {
        PeerSlot::Shared
    }
}

/// Whether the backend serves, and the client may still use the frontend that led to it. The frontend is
/// checked only once in 64 jiffies, because that takes a look-up.
#[inline(always)]
fn is_current<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    is_checked: bool,
    peer: &SocketPeer<F>,
) -> bool {
    if !tables.is_alive(peer.backend) {
        return false;
    }
    is_checked
        || frontend::find(tables, addr, port, protocol, client.is_node_loopback(addr)).is_some_and(|target| {
            target.service() == peer.service && matches!(source(tables, target, client), Source::Allowed)
        })
}

/// Writes the entry of an address into the shared map, and the one for replies: for each datagram, because another socket of
/// the namespace may have taken either's slot. Without the latter the process would get replies from an unknown
/// address, so nothing is sent. False if the map is full.
///
/// The stamp is that of the writing: a datagram that is checked at the end of one window may count as checked in the next.
#[inline(always)]
pub fn share<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    peer: &SocketPeer<F>,
) -> bool {
    let mut entry = SharedPeer::default();
    entry.key = SocketKey::new(tables.cookie(), *addr, port, SocketDirection::Send);
    entry.peer = *peer;
    entry.peer.checked = SocketPeer::<F>::stamp(tables.now());
    if !shared_peers::set(tables, &entry) {
        return false;
    }
    entry.key.addr = peer.addr;
    entry.key.port = peer.port;
    entry.key.direction = SocketDirection::Receive as u16;
    entry.peer.addr = *addr;
    entry.peer.port = port;
    shared_peers::set(tables, &entry)
}

/// Chooses the backend for a socket that requests an address; `peer` becomes that.
#[inline(always)]
pub fn translate<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    peer: &mut SocketPeer<F>,
) -> SocketVerdict {
    let is_node_loopback = client.is_node_loopback(addr);
    if !is_node_loopback && !tables.may_be_frontend(addr, port, protocol) {
        tables.step(Step::NoFrontendSurely);
        return SocketVerdict::Pass;
    }
    let Some(target) = frontend::find(tables, addr, port, protocol, is_node_loopback) else {
        if frontend::is_cluster_ip(tables, addr) {
            tables.reject(Counter::UndefinedPort, addr, port, protocol);
            return SocketVerdict::Reject;
        }
        return SocketVerdict::Pass;
    };
    match source(tables, target, client) {
        Source::Allowed => {}
        Source::Unknown => {
            // The packet path, of this node or of one behind the load balancer, knows the source.
            tables.count(Counter::SourceUnknown);
            return SocketVerdict::Pass;
        }
        Source::Denied => {
            reject_for(tables, DropReason::SourceDenied, addr, port, protocol);
            return SocketVerdict::Denied;
        }
    }
    let mut backend = Backend::default();
    match frontend::choose(tables, target, Scope::Internal, &client.bound, client.netns, &mut backend) {
        Choice::Made => {
            *peer = SocketPeer {
                addr: backend.addr,
                port: backend.port,
                checked: 0,
                backend: backend.id,
                service: target.service(),
            };
            tables.chosen(addr, port, protocol, peer);
            SocketVerdict::Translate
        }
        Choice::NotOurs => SocketVerdict::Pass,
        Choice::Nobody => {
            tables.reject(Counter::NoEndpoints, addr, port, protocol);
            SocketVerdict::Reject
        }
        Choice::NoLocalEndpoints => {
            reject_for(tables, DropReason::NoLocalEndpoints, addr, port, protocol);
            SocketVerdict::Unreachable
        }
        Choice::Broken => SocketVerdict::Reject,
    }
}

/// Rejects a socket for the same reasons for which a packet is dropped.
#[inline(always)]
fn reject_for<F: Family, T: SocketTables<F>>(
    tables: &T,
    reason: DropReason,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
) {
    tables.reject(reason.counter(), addr, port, protocol);
    tables.step(Step::Drop(reason));
}

/// Whether a client may use a frontend.
enum Source {
    Allowed,
    Unknown,
    Denied,
}

#[inline(always)]
fn source<F: Family, T: SocketTables<F>>(tables: &T, target: Target, client: &SocketClient<F>) -> Source {
    if target.flags() & FRONTEND_SOURCE_RANGES == 0 {
        return Source::Allowed;
    }
    let mut source = client.bound;
    if F::same(&source, &F::UNSPECIFIED) && !tables.netns_address(client.netns, &mut source) {
        return Source::Unknown;
    }
    if tables.allows_source(target.service(), &source) { Source::Allowed } else { Source::Denied }
}
