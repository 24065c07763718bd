//! The cgroup programs: a socket's address becomes the backend's, once per connect or datagram, and the VIP
//! again when the process requests its peer. When the socket is closed, its cell is released.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
    programs::{SockAddrContext, SockContext},
};
use proxy_common::{
    V4, V6,
    decide::{self, Seen, SocketClient, SocketOrigin, SocketVerdict},
    layout::socket::SocketPeer,
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};

#[cfg(feature = "kernel-log")]
use crate::log::Loggable as _;
use crate::{
    family::KernelFamily,
    log::record,
    maps::PACKET_PODS,
    settings::{HAS_SET_RETVAL, LOCALHOST_NODEPORTS, NODE_NETNS, SOCKETS_OF_NODE_ONLY},
    socket_address::{AddressAccess, Mapped, Plain, is_mapped, port, protocol, set_port},
    socket_tables::{forget, release},
    tables::Kernel,
};

const ALLOW: i32 = 1;
const REJECT: i32 = 0;

pub(crate) fn connect4(ctx: &SockAddrContext) -> i32 {
    connect::<V4, Plain>(ctx)
}

pub(crate) fn connect6(ctx: &SockAddrContext) -> i32 {
    if is_mapped(ctx) { connect::<V4, Mapped>(ctx) } else { connect::<V6, Plain>(ctx) }
}

pub(crate) fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    sendmsg::<V4, Plain>(ctx)
}

pub(crate) fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    if is_mapped(ctx) { sendmsg::<V4, Mapped>(ctx) } else { sendmsg::<V6, Plain>(ctx) }
}

pub(crate) fn recvmsg4(ctx: &SockAddrContext) -> i32 {
    recvmsg::<V4, Plain>(ctx)
}

pub(crate) fn recvmsg6(ctx: &SockAddrContext) -> i32 {
    if is_mapped(ctx) { recvmsg::<V4, Mapped>(ctx) } else { recvmsg::<V6, Plain>(ctx) }
}

pub(crate) fn getpeername4(ctx: &SockAddrContext) -> i32 {
    getpeername::<V4, Plain>(ctx)
}

pub(crate) fn getpeername6(ctx: &SockAddrContext) -> i32 {
    if is_mapped(ctx) { getpeername::<V4, Mapped>(ctx) } else { getpeername::<V6, Plain>(ctx) }
}

/// The last descriptor of a socket is closed. The kernel does not call this for sockets that it opened itself: their cells
/// stay taken.
pub(crate) fn sock_release(ctx: &SockContext) -> i32 {
    // SAFETY: the context is readable.
    let protocol = unsafe { (*ctx.sock).protocol };
    if protocol == PROTOCOL_TCP as u32 || protocol == PROTOCOL_UDP as u32 {
        // SAFETY: the context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // A socket may have a cell of each family, because it may connect to `::ffff:a.b.c.d`, too. Its family does not show
        // which: `IPV6_ADDRFORM` makes an IPv6 socket one of IPv4.
        release::<V4>(cookie);
        release::<V6>(cookie);
    }
    ALLOW
}

/// Whether a datagram socket has a peer.
#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    /// `TCP_ESTABLISHED`, which is also the state of connected UDP sockets.
    const ESTABLISHED: u32 = 1;
    // SAFETY: the hooks give a socket.
    unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).state == ESTABLISHED }
}

/// Cookies of the socket's network namespace and of the node's.
#[inline(always)]
fn network_namespaces(ctx: &SockAddrContext) -> (u64, u64) {
    // SAFETY: the context, or null for the machine's first network namespace.
    unsafe {
        let node = match NODE_NETNS.load() {
            0 => bpf_get_netns_cookie(core::ptr::null_mut()),
            cookie => cookie,
        };
        (bpf_get_netns_cookie(ctx.as_ptr()), node)
    }
}

#[inline(always)]
fn is_of_pod(ctx: &SockAddrContext) -> bool {
    let (netns, node) = network_namespaces(ctx);
    netns != node
}

/// Whether the process bound it (`SO_BINDTODEVICE`) to `lo`.
#[inline(always)]
fn is_bound_to_loopback_device(ctx: &SockAddrContext) -> bool {
    /// `LOOPBACK_IFINDEX`: the index of `lo` in every network namespace.
    const LOOPBACK: u32 = 1;
    // SAFETY: the hooks give a socket.
    unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).bound_dev_if == LOOPBACK }
}

/// The client of the socket; `None` if the socket is left alone.
#[inline(always)]
fn client<F: KernelFamily, P: AddressAccess<F>>(ctx: &SockAddrContext) -> Option<SocketClient<F>> {
    let protocol = protocol(ctx);
    if !F::is_served() || protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
        return None;
    }
    let bound = P::bound(ctx);
    // A socket on loopback reaches no endpoint. By any other device the socket reaches its endpoint where the
    // VIP would have led it, within the same VRF if the device is one.
    if is_bound_to_loopback_device(ctx) || F::is_loopback(&bound) {
        return None;
    }
    let (netns, node) = network_namespaces(ctx);
    let origin = if netns != node {
        if SOCKETS_OF_NODE_ONLY.load() != 0 || PACKET_PODS.get_ptr(netns).is_some() {
            return None;
        }
        SocketOrigin::Pod
    } else if LOCALHOST_NODEPORTS.load() != 0 {
        SocketOrigin::Node
    } else {
        // As in a pod, whose loopback addresses are its own.
        SocketOrigin::Pod
    };
    Some(SocketClient { origin, netns, bound })
}

/// Rejects; the process gets the error, or EPERM where the kernel cannot set it.
#[inline(always)]
fn reject(verdict: SocketVerdict) -> i32 {
    const EPERM: i32 = 1;
    const ECONNREFUSED: i32 = 111;
    const EHOSTUNREACH: i32 = 113;
    if HAS_SET_RETVAL.load() != 0 {
        let error = match verdict {
            SocketVerdict::Denied => EPERM,
            SocketVerdict::Unreachable => EHOSTUNREACH,
            _ => ECONNREFUSED,
        };
        // SAFETY: plain argument.
        unsafe { bpf_set_retval(-error) };
    }
    REJECT
}

#[inline(always)]
fn connect<F: KernelFamily, P: AddressAccess<F>>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = (P::get(ctx), port(ctx));
    let kernel = Kernel::of_socket(ctx.as_ptr(), P::IS_MAPPED);
    if !decide::may_be_translated::<F, _>(&kernel, &addr, port, protocol(ctx)) {
        return connect_elsewhere::<F>(ctx);
    }
    let Some(client) = client::<F, P>(ctx) else { return ALLOW };
    let mut peer = SocketPeer::<F>::default();
    match decide::connect(&kernel, &addr, port, protocol(ctx), &client, &mut peer) {
        SocketVerdict::Pass => connect_elsewhere::<F>(ctx),
        SocketVerdict::Translate => {
            record!(
                info,
                ctx,
                "connect to {:i}:{} becomes {:i}:{}",
                addr.ip(),
                u16::from_be(port),
                peer.addr.ip(),
                u16::from_be(peer.port)
            );
            decide::remember_connected::<F, _>(&kernel, &addr, port, &peer);
            P::set(ctx, &peer.addr);
            set_port(ctx, peer.port);
            ALLOW
        }
        verdict => {
            record!(warn, ctx, "connect to {:i}:{} refused", addr.ip(), u16::from_be(port));
            reject(verdict)
        }
    }
}

/// A datagram socket that connects again: the VIP that it requested before is no longer its peer.
#[inline(always)]
fn connect_elsewhere<F: KernelFamily>(ctx: &SockAddrContext) -> i32 {
    if protocol(ctx) == PROTOCOL_UDP {
        forget::<F>(ctx);
    }
    ALLOW
}

#[inline(always)]
fn sendmsg<F: KernelFamily, P: AddressAccess<F>>(ctx: &SockAddrContext) -> i32 {
    let (addr, port) = (P::get(ctx), port(ctx));
    let kernel = Kernel::of_socket(ctx.as_ptr(), P::IS_MAPPED);
    if !decide::may_be_translated::<F, _>(&kernel, &addr, port, protocol(ctx)) {
        return ALLOW;
    }
    let Some(client) = client::<F, P>(ctx) else { return ALLOW };
    let mut peer = SocketPeer::<F>::default();
    match decide::send(&kernel, &addr, port, protocol(ctx), &client, is_connected(ctx), &mut peer) {
        SocketVerdict::Pass => ALLOW,
        SocketVerdict::Translate => {
            record!(
                debug,
                ctx,
                "datagram to {:i}:{} becomes {:i}:{}",
                addr.ip(),
                u16::from_be(port),
                peer.addr.ip(),
                u16::from_be(peer.port)
            );
            P::set(ctx, &peer.addr);
            set_port(ctx, peer.port);
            ALLOW
        }
        verdict => {
            // A step may have left the endpoint there. Programs of others run on, and the kernel's own senders may use the address again.
            P::set(ctx, &addr);
            set_port(ctx, port);
            reject(verdict)
        }
    }
}

#[inline(always)]
fn recvmsg<F: KernelFamily, P: AddressAccess<F>>(ctx: &SockAddrContext) -> i32 {
    // Then the programs do not translate for pods' sockets, so there is no entry to look up.
    if !F::is_served() || SOCKETS_OF_NODE_ONLY.load() != 0 && is_of_pod(ctx) {
        return ALLOW;
    }
    let mut seen = Seen::default();
    if decide::datagram_source::<F, _>(
        &Kernel::of_socket(ctx.as_ptr(), P::IS_MAPPED),
        &P::get(ctx),
        port(ctx),
        &mut seen,
    ) {
        P::set(ctx, &seen.addr);
        set_port(ctx, seen.port);
    }
    ALLOW
}

#[inline(always)]
fn getpeername<F: KernelFamily, P: AddressAccess<F>>(ctx: &SockAddrContext) -> i32 {
    if !F::is_served() {
        return ALLOW;
    }
    let mut seen = Seen::default();
    if decide::peer_name::<F, _>(
        &Kernel::of_socket(ctx.as_ptr(), P::IS_MAPPED),
        &P::get(ctx),
        port(ctx),
        &mut seen,
    ) {
        P::set(ctx, &seen.addr);
        set_port(ctx, seen.port);
    }
    ALLOW
}
