//! Run by the agent, never attached: reads the record of a connected socket, in its cell or in its storage. The agent could
//! read socket storage by a socket's file descriptor, which it does not have, and by sock_diag, which does not report that
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

/// Replies to the [`SocketQuestion`] in the packet, in the network namespace of the caller.
#[inline(always)]
pub(crate) fn run<F: KernelFamily>(ctx: &TcContext) -> i32 {
    let mut asked = SocketQuestion::<F>::default();
    let (offset, size) = (SocketQuestion::<F>::OFFSET as u32, size_of::<SocketQuestion<F>>() as u32);
    // SAFETY: the context, and a buffer of the size that is given.
    if unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, (&raw mut asked).cast(), size) } != 0 {
        return Id::NONE.0 as i32;
    }
    let mut reply = ConnectedPeer::<F>::default();
    if let Some(kept) = F::peer_cell(asked.cookie).and_then(|cell| cell.get(asked.cookie)) {
        reply_if_peer(&asked, &kept, &mut reply);
    }
    // No socket is connected to port 0.
    if reply.backend_port == 0 {
        read_storage(ctx, &mut asked, &mut reply);
    }
    let size = size_of::<ConnectedPeer<F>>() as u32;
    // SAFETY: the context, and a buffer of the size that is given.
    if unsafe { bpf_skb_store_bytes(ctx.as_ptr().cast(), offset, (&raw const reply).cast(), size, 0) } != 0 {
        return Id::NONE.0 as i32;
    }
    reply.backend_id.0 as i32
}

/// Replies with the record, if its backend is the peer: the socket may have connected elsewhere since.
#[inline(always)]
fn reply_if_peer<F: KernelFamily>(
    asked: &SocketQuestion<F>,
    kept: &ConnectedPeer<F>,
    reply: &mut ConnectedPeer<F>,
) {
    if F::same(&kept.backend, &asked.peer) && kept.backend_port == asked.peer_port {
        *reply = *kept;
    }
}

/// Looks in the storage of the socket with the addresses.
#[inline(always)]
fn read_storage<F: KernelFamily>(
    ctx: &TcContext,
    asked: &mut SocketQuestion<F>,
    reply: &mut ConnectedPeer<F>,
) {
    /// `BPF_F_CURRENT_NETNS`.
    const CURRENT_NETNS: u64 = u64::MAX;
    let is_tcp = asked.protocol == PROTOCOL_TCP as u32;
    let (tuple, size) = (ptr::from_mut(asked).cast(), SocketQuestion::<F>::TUPLE as u32);
    // SAFETY: the context, and a tuple of the size that is given.
    let socket = unsafe {
        if is_tcp {
            bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(ctx.as_ptr(), tuple, size, CURRENT_NETNS, 0)
        }
    };
    if socket.is_null() {
        return;
    }
    let connected = ptr::from_ref(F::connected()).cast_mut().cast();
    // SAFETY: a map, and a socket that the program holds; its storage lives as long.
    let kept = unsafe {
        bpf_sk_storage_get(connected, socket.cast(), ptr::null_mut(), 0).cast::<ConnectedPeer<F>>().as_ref()
    };
    if let Some(kept) = kept {
        reply_if_peer(asked, kept, reply);
    }
    // SAFETY: the socket found above, not used afterwards.
    unsafe { bpf_sk_release(socket.cast()) };
}
