//! The socket path: what the cgroup programs run.

use super::{
    frontend::{self, Choice},
    tables::{SocketTables, Step},
    verdict::{DropReason, SocketVerdict},
};
use crate::{
    Family,
    layout::{
        backend::Backend,
        counter::Counter,
        frontend::FRONTEND_SOURCES,
        set::Scope,
        socket::{SocketDirection, SocketKey, SocketPeer},
    },
};

/// Whose a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketOrigin {
    /// A process in the node's network namespace: loopback nodePorts work.
    Node,
    /// A process in a pod's.
    Pod,
}

/// Who uses a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketClient<F: Family> {
    /// Whose it is.
    pub origin: SocketOrigin,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The address it is bound to, or unspecified.
    pub bound: F::Addr,
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
    let verdict = translate(tables, addr, port, protocol, client, peer);
    if matches!(verdict, SocketVerdict::Translate) {
        tables.count(Counter::SocketConnect);
    }
    verdict
}

/// An unconnected UDP socket (`cookie`) sends to an address; the port in network byte order. `peer` becomes the backend.
///
/// The socket keeps its backend while that serves, and answers from it will seem to come from the VIP.
#[inline(always)]
pub fn send<F: Family, T: SocketTables<F>>(
    tables: &T,
    cookie: u64,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    peer: &mut SocketPeer<F>,
) -> SocketVerdict {
    if !F::is_loopback(addr) && !tables.may_be_frontend(addr, port, protocol) {
        tables.step(Step::NoFrontendSurely);
        return SocketVerdict::Pass;
    }
    let key = SocketKey::new(cookie, *addr, port, SocketDirection::Send);
    let mut known = false;
    if let Some(before) = tables.socket(&key)
        && tables.is_alive(before.backend)
    {
        *peer = *before;
        known = true;
    }
    if !known {
        let verdict = translate(tables, addr, port, protocol, client, peer);
        if !matches!(verdict, SocketVerdict::Translate) {
            return verdict;
        }
        if !tables.remember_socket(&key, peer) {
            tables.count(Counter::FlowMapFull);
            return SocketVerdict::Reject;
        }
    }
    // Checked on each datagram: the map forgets this entry first, because it is read only when answers come. Without
    // it the process would get answers from a stranger, so rather nothing is sent.
    if !remember_answer(tables, cookie, addr, port, peer) {
        tables.count(Counter::FlowMapFull);
        return SocketVerdict::Reject;
    }
    tables.count(Counter::SocketSend);
    SocketVerdict::Translate
}

/// Where a datagram for an unconnected socket seems to come from, if not from where it does.
#[inline(always)]
pub fn peer_of_datagram<'t, F: Family, T: SocketTables<F>>(
    tables: &'t T,
    cookie: u64,
    addr: &F::Addr,
    port: u16,
) -> Option<&'t SocketPeer<F>> {
    tables.socket(&SocketKey::new(cookie, *addr, port, SocketDirection::Receive))
}

#[inline(always)]
fn remember_answer<F: Family, T: SocketTables<F>>(
    tables: &T,
    cookie: u64,
    vip: &F::Addr,
    vip_port: u16,
    peer: &SocketPeer<F>,
) -> bool {
    let key = SocketKey::new(cookie, peer.addr, peer.port, SocketDirection::Receive);
    if let Some(answer) = tables.socket(&key)
        && F::same(&answer.addr, vip)
        && answer.port == vip_port
    {
        return true;
    }
    let answer =
        SocketPeer { addr: *vip, port: vip_port, zero: 0, backend: peer.backend, service: peer.service };
    tables.remember_socket(&key, &answer)
}

#[inline(always)]
fn translate<F: Family, T: SocketTables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    client: &SocketClient<F>,
    peer: &mut SocketPeer<F>,
) -> SocketVerdict {
    let is_node_loopback = F::is_loopback(addr) && matches!(client.origin, SocketOrigin::Node);
    if !is_node_loopback && !tables.may_be_frontend(addr, port, protocol) {
        tables.step(Step::NoFrontendSurely);
        return SocketVerdict::Pass;
    }
    let Some(target) = frontend::find(tables, addr, port, protocol, is_node_loopback) else {
        if frontend::is_cluster_ip(tables, addr) {
            tables.count(Counter::UndefinedPort);
            return SocketVerdict::Reject;
        }
        return SocketVerdict::Pass;
    };
    if target.flags() & FRONTEND_SOURCES != 0 {
        let mut source = client.bound;
        if F::same(&source, &F::UNSPECIFIED) && !tables.netns_address(client.netns, &mut source) {
            // Whoever gets the packets, in this node's packet path or behind the load balancer, knows the source.
            tables.count(Counter::SourceUnknown);
            return SocketVerdict::Pass;
        }
        if !tables.allows_source(target.service(), &source) {
            tables.drop(DropReason::SourceDenied);
            return SocketVerdict::Denied;
        }
    }
    let mut backend = Backend::default();
    match frontend::choose(tables, target, Scope::Internal, &client.bound, client.netns, &mut backend) {
        Choice::Made => {
            *peer = SocketPeer {
                addr: backend.addr,
                port: backend.port,
                zero: 0,
                backend: backend.id,
                service: target.service(),
            };
            SocketVerdict::Translate
        }
        Choice::NotOurs => SocketVerdict::Pass,
        Choice::Nobody => {
            tables.count(Counter::NoEndpoints);
            SocketVerdict::Reject
        }
        Choice::Withheld => {
            tables.drop(DropReason::NoLocalEndpoints);
            SocketVerdict::Unreachable
        }
        Choice::Broken => SocketVerdict::Reject,
    }
}
