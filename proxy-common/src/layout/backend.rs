//! `backends_v4`, `backends_v6` and `alive`: mmap-able ARRAYs, written by the agent.

use super::id::Id;
use crate::{Family, V4, V6};

/// One slot: an endpoint of a service port. Read for each new flow and each connect.
///
/// The kernel lays array elements out in multiples of 8 bytes, so the IPv4 slot is padded to 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend<F: Family> {
    /// The endpoint's address.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
    /// Zero; kept for flags.
    pub zero: u16,
    /// Tells endpoints apart in flows; see [`Alive`].
    pub id: Id,
    pad: F::SlotPad,
}

impl<F: Family> Backend<F> {
    /// A slot; the port in network byte order.
    #[inline(always)]
    pub fn new(addr: F::Addr, port: u16, id: Id) -> Self {
        Self { addr, port, zero: 0, id, pad: F::SlotPad::default() }
    }
}

/// Generations of eight backends; element `index / 8` of `alive`.
///
/// A backend is alive while its byte holds the generation of its id. UDP flows check it, so that one store moves
/// every UDP flow off an endpoint that stopped serving, without a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Alive(pub u64);

impl Alive {
    /// Backends per element.
    pub const PER_ELEMENT: u32 = 8;

    /// Where the byte of a backend is: element and byte within it.
    #[inline(always)]
    pub const fn position(backend: Id) -> (u32, u32) {
        (backend.index() / Self::PER_ELEMENT, backend.index() % Self::PER_ELEMENT)
    }

    /// Does the element say that the backend is alive?
    #[inline(always)]
    pub const fn holds(self, backend: Id) -> bool {
        // Bytes by shift, not by address: the agent stores at byte offset `index`, which is this on little-endian hosts.
        (self.0 >> (8 * (backend.index() % Self::PER_ELEMENT))) as u8 == backend.generation()
    }
}

super::plain!(Backend<F>, Alive);

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Backend<V4>>() == 16 && offset_of!(Backend<V4>, id) == 8);
    assert!(size_of::<Backend<V6>>() == 24 && offset_of!(Backend<V6>, id) == 20);
    assert!(cfg!(target_endian = "little"), "`alive` is addressed by bytes");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alive_follows_the_generation() {
        let id = Id::new(11, 3);
        assert_eq!(Alive::position(id), (1, 3));
        let element = Alive(3 << 24);
        assert!(element.holds(id));
        assert!(!element.holds(id.next()));
        assert!(!Alive(0).holds(id));
    }
}
