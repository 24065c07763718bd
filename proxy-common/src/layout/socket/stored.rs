//! `udp_peers_v4`, `udp_peers_v6`: the storage of an unconnected UDP socket.

use core::{marker::PhantomData, ptr::NonNull};

use super::SocketPeer;
use crate::{Family, V4, V6, layout::id::Id};

/// VIPs in a socket's storage. Most sockets send to one.
const SLOTS: usize = 2;

/// A VIP that the socket sends to, and its backend: translates both directions.
///
/// Threads may send by the same socket at once, and write here without a lock. So an entry ends with a
/// checksum: an entry of two writers or a torn one fails it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UdpPeer<F: Family> {
    /// The VIP.
    pub vip: F::Addr,
    /// The translation.
    pub peer: SocketPeer<F>,
    /// The VIP's port, network byte order.
    pub vip_port: u16,
    /// Zero.
    zero: u16,
    /// Checksum of all fields but the stamp; never that of zeros.
    seal: u32,
}

impl<F: Family> UdpPeer<F> {
    /// An entry.
    pub fn new(vip: F::Addr, vip_port: u16, peer: SocketPeer<F>) -> Self {
        Self {
            vip,
            peer,
            vip_port,
            zero: 0,
            seal: sum::<F>(&vip, vip_port, &peer.addr, peer.port, peer.backend, peer.service),
        }
    }

    /// Whether the entry exists and passes its checksum.
    pub fn is_whole(&self) -> bool {
        let Self { vip, peer, vip_port, seal, .. } = self;
        *seal == sum::<F>(vip, *vip_port, &peer.addr, peer.port, peer.backend, peer.service)
    }
}

/// The checksum. Odd, so never 0.
#[inline(always)]
fn sum<F: Family>(vip: &F::Addr, vip_port: u16, addr: &F::Addr, port: u16, backend: Id, service: Id) -> u32 {
    const STEP: u32 = 0x9e37_79b1;
    let ports = (vip_port as u32) << 16 | port as u32;
    let mut sum = STEP;
    // The rotation moves high bits down: products alone carry differences only upwards.
    for word in [F::fold(vip), F::fold(addr), ports, backend.0, service.0] {
        sum = (sum ^ word).wrapping_mul(STEP).rotate_left(13);
    }
    sum | 1
}

/// The whole storage of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UdpPeers<F: Family> {
    /// The entries, in no order.
    pub peers: [UdpPeer<F>; SLOTS],
    /// The slot that the socket sent to last, or [`UdpPeers::SHARED`]: of two VIPs with the same backend, a
    /// reply belongs to that one.
    pub last: u16,
    /// 1 if the socket has or had entries in the shared map.
    pub shares: u16,
}

impl<F: Family> UdpPeers<F> {
    /// Stands for the map that all sockets share, instead of a slot.
    pub const SHARED: u16 = SLOTS as u16;
}

/// A socket's storage, which other CPUs may read and write at the same time.
#[derive(Clone, Copy, Debug)]
pub struct UdpPeersRef<'t, F: Family> {
    at: NonNull<UdpPeers<F>>,
    lives: PhantomData<&'t F>,
}

impl<F: Family> UdpPeersRef<'_, F> {
    /// Wraps a pointer to storage.
    ///
    /// # Safety
    /// The storage is readable and writable for this lifetime, and no reference to it exists.
    #[inline(always)]
    pub unsafe fn new(at: NonNull<UdpPeers<F>>) -> Self {
        Self { at, lives: PhantomData }
    }

    /// Reads the translation of a datagram to a VIP, if this slot has it.
    #[inline(always)]
    pub fn find_to(&self, slot: u32, vip: &F::Addr, vip_port: u16, peer: &mut SocketPeer<F>) -> bool {
        let at = self.slot(slot);
        // SAFETY: see `new`. Volatile: the checked value is the used value.
        let seal = unsafe {
            if (&raw const (*at).vip_port).read_volatile() != vip_port
                || !F::same(&(&raw const (*at).vip).read_volatile(), vip)
            {
                return false;
            }
            *peer = (&raw const (*at).peer).read_volatile();
            (&raw const (*at).seal).read_volatile()
        };
        seal == sum::<F>(vip, vip_port, &peer.addr, peer.port, peer.backend, peer.service)
    }

    /// Reads the VIP of a reply from a backend, if this slot has it.
    #[inline(always)]
    pub fn find_from(
        &self,
        slot: u32,
        backend: &F::Addr,
        port: u16,
        vip: &mut F::Addr,
        vip_port: &mut u16,
    ) -> bool {
        let at = self.slot(slot);
        // SAFETY: as above.
        unsafe {
            if (&raw const (*at).peer.port).read_volatile() != port
                || !F::same(&(&raw const (*at).peer.addr).read_volatile(), backend)
            {
                return false;
            }
            *vip = (&raw const (*at).vip).read_volatile();
            *vip_port = (&raw const (*at).vip_port).read_volatile();
            let id = (&raw const (*at).peer.backend).read_volatile();
            let service = (&raw const (*at).peer.service).read_volatile();
            (&raw const (*at).seal).read_volatile() == sum::<F>(vip, *vip_port, backend, port, id, service)
        }
    }

    /// The backend of a slot, or [`Id::NONE`].
    #[inline(always)]
    pub fn backend(&self, slot: u32) -> Id {
        let at = self.slot(slot);
        // SAFETY: as above.
        unsafe {
            let vip = (&raw const (*at).vip).read_volatile();
            let addr = (&raw const (*at).peer.addr).read_volatile();
            let (vip_port, port) =
                ((&raw const (*at).vip_port).read_volatile(), (&raw const (*at).peer.port).read_volatile());
            let id = (&raw const (*at).peer.backend).read_volatile();
            let service = (&raw const (*at).peer.service).read_volatile();
            let is_whole =
                (&raw const (*at).seal).read_volatile() == sum::<F>(&vip, vip_port, &addr, port, id, service);
            if is_whole { id } else { Id::NONE }
        }
    }

    /// Writes an entry to a slot.
    #[inline(always)]
    pub fn set(&self, slot: u32, vip: &F::Addr, vip_port: u16, peer: &SocketPeer<F>) {
        let at = self.slot(slot);
        let seal = sum::<F>(vip, vip_port, &peer.addr, peer.port, peer.backend, peer.service);
        // SAFETY: see `new`.
        unsafe {
            (&raw mut (*at).vip).write_volatile(*vip);
            (&raw mut (*at).vip_port).write_volatile(vip_port);
            (&raw mut (*at).peer).write_volatile(*peer);
            (&raw mut (*at).seal).write_volatile(seal);
        }
    }

    /// Empties a slot.
    #[inline(always)]
    pub fn clear(&self, slot: u32) {
        // SAFETY: see `new`. No sum is 0.
        unsafe { (&raw mut (*self.slot(slot)).seal).write_volatile(0) }
    }

    #[inline(always)]
    fn slot(&self, slot: u32) -> *mut UdpPeer<F> {
        // SAFETY: see `new`; the remainder is below the number of slots, which the verifier checks, too.
        unsafe { (&raw mut (*self.at.as_ptr()).peers).cast::<UdpPeer<F>>().add(slot as usize % SLOTS) }
    }

    /// See [`UdpPeers::last`].
    #[inline(always)]
    pub fn last(&self) -> u16 {
        // SAFETY: see `new`.
        unsafe { (&raw const (*self.at.as_ptr()).last).read_volatile() }
    }

    /// Writes [`UdpPeers::last`] if it differs.
    #[inline(always)]
    pub fn set_last(&self, last: u16) {
        if self.last() == last {
            return;
        }
        // SAFETY: see `new`.
        unsafe { (&raw mut (*self.at.as_ptr()).last).write_volatile(last) }
        if last == UdpPeers::<F>::SHARED {
            // SAFETY: see `new`.
            unsafe { (&raw mut (*self.at.as_ptr()).shares).write_volatile(1) }
        }
    }

    /// See [`UdpPeers::shares`].
    #[inline(always)]
    pub fn shares(&self) -> bool {
        // SAFETY: see `new`.
        unsafe { (&raw const (*self.at.as_ptr()).shares).read_volatile() != 0 }
    }
}

super::super::plain!(UdpPeer<F>, UdpPeers<F>);

const _: () = {
    assert!(size_of::<UdpPeer<V4>>() == 28 && size_of::<UdpPeer<V6>>() == 52);
    assert!(size_of::<UdpPeers<V4>>() == 60 && size_of::<UdpPeers<V6>>() == 108);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(vip: u32, backend: u32, id: u32) -> UdpPeer<V4> {
        let peer = SocketPeer { addr: backend, port: 53, checked: 0, backend: Id(id), service: Id(9) };
        UdpPeer::new(vip, 53, peer)
    }

    #[test]
    fn nothing_is_no_entry() {
        assert!(!UdpPeer::<V4>::default().is_whole() && !UdpPeer::<V6>::default().is_whole());
    }

    #[test]
    fn what_is_written_is_found() {
        let mut peers = UdpPeers::<V4>::default();
        // SAFETY: used only through the reference while that lives.
        let kept = unsafe { UdpPeersRef::new(NonNull::from(&mut peers)) };
        let written = entry(1, 2, 3);
        let mut peer = SocketPeer::default();
        for slot in 0..2 {
            assert!(!kept.find_to(slot, &0, 0, &mut peer) && kept.backend(slot) == Id::NONE);
            kept.set(slot, &written.vip, written.vip_port, &written.peer);
            assert!(kept.find_to(slot, &1, 53, &mut peer) && peer == written.peer);
            assert!(!kept.find_to(slot, &2, 53, &mut peer) && !kept.find_to(slot, &1, 54, &mut peer));
            let (mut vip, mut port) = (0, 0);
            assert!(kept.find_from(slot, &2, 53, &mut vip, &mut port) && (vip, port) == (1, 53));
            assert!(!kept.find_from(slot, &1, 53, &mut vip, &mut port));
            assert_eq!(kept.backend(slot), Id(3));
            kept.clear(slot);
            assert!(
                !kept.find_to(slot, &1, 53, &mut peer) && !kept.find_from(slot, &2, 53, &mut vip, &mut port)
            );
            assert_eq!(kept.backend(slot), Id::NONE);
        }
    }

    #[test]
    fn an_entry_of_two_writers_is_none() {
        let words = |entry: UdpPeer<V4>| {
            // SAFETY: plain, and of this size.
            unsafe { core::mem::transmute::<UdpPeer<V4>, [u32; 7]>(entry) }
        };
        let (a, b) = (words(entry(1, 2, 3)), words(entry(4, 5, 6)));
        for mask in 0..128u32 {
            let mixed: [u32; 7] =
                core::array::from_fn(|word| if mask >> word & 1 == 0 { a[word] } else { b[word] });
            // SAFETY: as above.
            let entry = unsafe { core::mem::transmute::<[u32; 7], UdpPeer<V4>>(mixed) };
            assert_eq!(entry.is_whole(), mixed == a || mixed == b, "{mask:b}");
        }
    }
}
