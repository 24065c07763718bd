//! Run by the agent, never attached: reads the storage of a connected socket. The agent could read socket
//! storage by a socket's file descriptor, which it does not have, and by sock_diag, which does not report that
//! of UDP sockets. A program can read that of every socket it finds.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{
        bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use proxy_common::{
    layout::{
        id::Id,
        socket::{ConnectedPeer, SocketQuestion},
    },
    packet::PROTOCOL_TCP,
};

use crate::family::KernelFamily;

/// Answers the [`SocketQuestion`] in the packet, in the network namespace of the caller.
#[inline(always)]
pub(crate) fn run<F: KernelFamily>(ctx: &TcContext) -> i32 {
    /// `BPF_F_CURRENT_NETNS`.
    const CURRENT_NETNS: u64 = u64::MAX;
    let mut asked = SocketQuestion::<F>::default();
    let (offset, size) = (SocketQuestion::<F>::OFFSET as u32, size_of::<SocketQuestion<F>>() as u32);
    // SAFETY: the context, and a buffer of the size that is given.
    if unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, (&raw mut asked).cast(), size) } != 0 {
        return Id::NONE.0 as i32;
    }
    let (tuple, size) = ((&raw mut asked).cast(), SocketQuestion::<F>::TUPLE as u32);
    // SAFETY: the context, and a tuple of the size that is given.
    let socket = unsafe {
        if asked.protocol == PROTOCOL_TCP as u32 {
            bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0)
        }
    };
    if socket.is_null() {
        return Id::NONE.0 as i32;
    }
    let connected = ptr::from_ref(F::connected()).cast_mut().cast();
    // SAFETY: a map, and a socket that the program holds; its storage lives as long.
    let kept = unsafe {
        bpf_sk_storage_get(connected, socket.cast(), ptr::null_mut(), 0).cast::<ConnectedPeer<F>>().as_ref()
    };
    let mut reply = ConnectedPeer::<F>::default();
    // The socket may have connected elsewhere since.
    if let Some(kept) = kept
        && F::same(&kept.backend, &asked.peer)
        && kept.backend_port == asked.peer_port
    {
        reply = *kept;
    }
    let size = size_of::<ConnectedPeer<F>>() as u32;
    // SAFETY: the socket found above, not used afterwards; the context, and a buffer of the size that is given.
    unsafe {
        bpf_sk_release(socket.cast());
        if bpf_skb_store_bytes(ctx.as_ptr().cast(), offset, (&raw const reply).cast(), size, 0) != 0 {
            return Id::NONE.0 as i32;
        }
    }
    reply.backend_id.0 as i32
}
