//! The tables for sockets.

use core::ptr::NonNull;
use std::boxed::Box;

use crate::decide::tables::SocketTables;
use crate::layout::socket::{ConnectedPeer, SharedKey, SharedPeer, UdpPeersRef};

use super::{MemoryFamily, MemoryTables};

impl<F: MemoryFamily> SocketTables<F> for MemoryTables<F> {
    fn cookie(&self) -> u64 {
        self.socket.get()
    }

    fn netns(&self) -> u64 {
        self.socket_netns.get()
    }

    fn has_socket_storage(&self) -> bool {
        self.socket_storage
    }

    fn connected(&self, is_wanted: impl Fn(&ConnectedPeer<F>) -> bool) -> Option<ConnectedPeer<F>> {
        self.connected.borrow().get(&self.socket.get()).copied().filter(is_wanted)
    }

    fn set_connected(&self, peer: &mut ConnectedPeer<F>) {
        self.connected.borrow_mut().insert(self.socket.get(), *peer);
    }

    fn udp_peers_or_new(&self) -> Option<UdpPeersRef<'_, F>> {
        if self.socket_storage && self.socket_memory {
            self.udp_peers.borrow_mut().entry(self.socket.get()).or_default();
        }
        self.udp_peers()
    }

    fn udp_peers(&self) -> Option<UdpPeersRef<'_, F>> {
        let udp_peers = self.udp_peers.borrow();
        let at = NonNull::new(udp_peers.get(&self.socket.get())?.as_ptr())?;
        // SAFETY: the tables keep it, and give out no reference to it.
        Some(unsafe { UdpPeersRef::new(at) })
    }

    fn shared_peer(&self, key: &SharedKey) -> Option<&SharedPeer<F>> {
        self.shared_peers.borrow().get(key).copied()
    }

    fn set_shared_peer(&self, key: &SharedKey, peer: &SharedPeer<F>) -> bool {
        self.shared_peers.borrow_mut().insert(*key, Box::leak(Box::new(*peer)));
        true
    }

    fn netns_address(&self, netns: u64, addr: &mut F::Addr) -> bool {
        self.netns.get(&netns).map(|known| *addr = *known).is_some()
    }
}
