//! The core's tables for sockets in the kernel: socket storage, and the map that sockets share.

use core::{arch::asm, ptr::NonNull};

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::SockAddrContext,
};
use proxy_common::{
    decide::{SocketClient, SocketTables, SocketVerdict},
    layout::{
        counter::Counter,
        socket::{Claims, ConnectedPeer, SharedKey, SharedPeer, SocketPeer, UdpPeersRef},
    },
};

use crate::{family::KernelFamily, report, settings::HAS_SK_STORAGE, tables::Kernel};

/// A word of a map, which programs on other CPUs may change at any time.
///
/// Invariant: the word is within an element to which the kernel gave a pointer.
struct MapWord(*mut u64);

impl From<*mut u64> for MapWord {
    #[inline(always)]
    fn from(word: *mut u64) -> Self {
        Self(word)
    }
}

impl Claims for MapWord {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: the invariant.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn add(&self, number: u64) {
        // `BPF_XADD`. The compiler has no atomic addition for this target.
        // SAFETY: the invariant.
        unsafe {
            asm!("lock *(u64 *)({word} + 0) += {number}", word = in(reg) self.0, number = in(reg) number)
        };
    }
}

impl<F: KernelFamily> SocketTables<F> for Kernel {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the context.
        unsafe { bpf_get_socket_cookie(self.ctx) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: the context.
        unsafe { bpf_get_netns_cookie(self.ctx) }
    }

    #[inline(always)]
    fn has_socket_storage(&self) -> bool {
        HAS_SK_STORAGE.load() != 0
    }

    #[inline(always)]
    fn connected(&self, is_wanted: impl Fn(&ConnectedPeer<F>) -> bool) -> Option<ConnectedPeer<F>> {
        let cookie = SocketTables::<F>::cookie(self);
        if let Some(cell) = F::peer_cell(cookie)
            && let Some(peer) = cell.get(cookie)
            && is_wanted(&peer)
        {
            return Some(peer);
        }
        // Where an earlier release ran meanwhile, a socket with a cell may have storage, too: its programs know no cells.
        // SAFETY: the hooks give a socket; its storage lives as long as that.
        let stored = unsafe { F::connected().get_ptr_mut(&SockAddrContext::new(self.ctx.cast())).as_ref() };
        stored.copied().filter(is_wanted)
    }

    #[inline(always)]
    fn set_connected(&self, peer: &mut ConnectedPeer<F>) {
        let ctx = SockAddrContext::new(self.ctx.cast());
        // SAFETY: as above.
        unsafe {
            let cookie = SocketTables::<F>::cookie(self);
            // A socket with storage keeps its record there: in one place only. Its cell may have one from before an earlier
            // release ran.
            if let Some(stored) = F::connected().get_ptr_mut(&ctx).as_mut() {
                *stored = *peer;
                if let Some(cell) = F::peer_cell(cookie) {
                    cell.clear(cookie);
                }
                return;
            }
            if F::peer_cell(cookie).is_some_and(|cell| cell.set::<MapWord>(cookie, peer)) {
                return;
            }
            // Another socket has the cell. To allocate storage takes several times as long.
            if let Some(stored) = F::connected().get_or_insert_ptr_mut(&ctx, Some(peer)).as_mut() {
                *stored = *peer;
            }
        }
    }

    #[inline(always)]
    fn udp_peers_or_new(&self) -> Option<UdpPeersRef<'_, F>> {
        if HAS_SK_STORAGE.load() == 0 {
            return None;
        }
        // SAFETY: the hooks give a socket; its storage lives as long as that, and only `UdpPeersRef` touches it.
        unsafe {
            let stored = F::udp_peers().get_or_insert_ptr_mut(&SockAddrContext::new(self.ctx.cast()), None);
            NonNull::new(stored).map(|at| UdpPeersRef::new(at))
        }
    }

    #[inline(always)]
    fn udp_peers(&self) -> Option<UdpPeersRef<'_, F>> {
        if HAS_SK_STORAGE.load() == 0 {
            return None;
        }
        // SAFETY: as above.
        unsafe {
            let stored = F::udp_peers().get_ptr_mut(&SockAddrContext::new(self.ctx.cast()));
            NonNull::new(stored).map(|at| UdpPeersRef::new(at))
        }
    }

    #[inline(always)]
    fn shared_peer(&self, key: &SharedKey) -> Option<&SharedPeer<F>> {
        // SAFETY: the kernel gave the pointer. Torn values are possible only for a socket that races with itself.
        F::shared_peer(key).map(|peer| unsafe { &*peer })
    }

    #[inline(always)]
    fn set_shared_peer(&self, key: &SharedKey, peer: &SharedPeer<F>) -> bool {
        F::set_shared_peer(key, peer)
    }

    #[inline(always)]
    fn netns_address(&self, netns: u64, addr: &mut F::Addr) -> bool {
        match F::netns(netns) {
            Some(known) => {
                // SAFETY: the kernel gave the pointer; the agent replaces whole elements.
                *addr = unsafe { *known };
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn translate(
        &self,
        _: &F::Addr,
        _: u16,
        _: u8,
        client: &SocketClient<F>,
        peer: &mut SocketPeer<F>,
    ) -> SocketVerdict {
        self.run_step(F::translate(self.is_mapped()), client, peer)
    }

    #[inline(always)]
    fn find_shared(
        &self,
        _: &F::Addr,
        _: u16,
        _: u8,
        client: &SocketClient<F>,
        peer: &mut SocketPeer<F>,
    ) -> bool {
        matches!(self.run_step(F::find_shared(self.is_mapped()), client, peer), SocketVerdict::Translate)
    }

    #[inline(always)]
    fn share(&self, addr: &F::Addr, port: u16, peer: &SocketPeer<F>) -> bool {
        self.share_peer(addr, port, peer)
    }

    #[inline(always)]
    fn chosen(&self, addr: &F::Addr, port: u16, protocol: u8, peer: &SocketPeer<F>) {
        report::socket_chosen::<F>(addr, port, protocol, peer);
    }

    #[inline(always)]
    fn reject(&self, counter: Counter, addr: &F::Addr, port: u16, protocol: u8) {
        report::socket_rejected::<F>(counter, addr, port, protocol);
    }
}

/// A socket is closed: its cell is free.
#[inline(always)]
pub(crate) fn release<F: KernelFamily>(cookie: u64) {
    if let Some(cell) = F::peer_cell(cookie) {
        cell.release::<MapWord>(cookie);
    }
}

/// Removes the record of a socket that connects to an address that is no VIP.
#[inline(always)]
pub(crate) fn forget<F: KernelFamily>(ctx: &SockAddrContext) {
    if HAS_SK_STORAGE.load() == 0 {
        return;
    }
    // SAFETY: the hooks give a socket.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        if let Some(cell) = F::peer_cell(cookie) {
            cell.clear(cookie);
        }
        let _ = F::connected().delete(socket);
        let _ = F::udp_peers().delete(socket);
    }
}
