//! `backends_v4`, `backends_v6` and `backend_states`: mmap-able ARRAYs, written by the agent.

use super::{id::Id, set::SetPolicy};
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
    /// `BACKEND_*` bits.
    pub flags: u16,
    /// Distinguishes endpoints in flows; see [`BackendState`].
    pub id: Id,
    pad: F::SlotPad,
}

impl<F: Family> Backend<F> {
    /// A slot; the port in network byte order.
    #[inline(always)]
    pub fn new(addr: F::Addr, port: u16, id: Id) -> Self {
        Self { addr, port, flags: 0, id, pad: F::SlotPad::default() }
    }

    /// The same with these `BACKEND_*` bits.
    #[inline(always)]
    #[must_use]
    pub fn with_flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }
}

/// The endpoint runs on this node (`nodeName` of its EndpointSlice).
pub const BACKEND_LOCAL: u16 = 1;
/// It runs on another node. With neither bit its node is unknown, and the route decides.
pub const BACKEND_REMOTE: u16 = 2;

/// State of four backends; element `index / 4` of `backend_states`.
///
/// A backend is alive while its lower byte holds the generation of its id. Programs check it for UDP flows, so
/// that one store moves every UDP flow off an endpoint that stopped serving, without a scan. Its upper byte has
/// [`SetPolicy::bit`]s: the sets that it is a member of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct BackendState(pub u64);

impl BackendState {
    /// Backends per element.
    pub const PER_ELEMENT: u32 = 4;

    /// Position of a backend: element and half-word within it.
    #[inline(always)]
    pub const fn position(backend: Id) -> (u32, u32) {
        (backend.index() / Self::PER_ELEMENT, backend.index() % Self::PER_ELEMENT)
    }

    /// The half-word of a backend that is alive; `set_policies` are [`SetPolicy::bit`]s.
    #[inline(always)]
    pub const fn entry(backend: Id, set_policies: u8) -> u16 {
        (set_policies as u16) << 8 | backend.generation() as u16
    }

    /// Whether the backend is alive.
    #[inline(always)]
    pub const fn holds(self, backend: Id) -> bool {
        self.half(backend) as u8 == backend.generation()
    }

    /// Whether the backend is alive, and a member of the set of this policy.
    #[inline(always)]
    pub const fn holds_in(self, backend: Id, set_policy: SetPolicy) -> bool {
        let half = self.half(backend);
        half as u8 == backend.generation() && half >> 8 & set_policy.bit() as u16 != 0
    }

    #[inline(always)]
    const fn half(self, backend: Id) -> u16 {
        // By shift, not by address: the agent stores the half-word `index`, which is the same on little-endian
        // hosts.
        (self.0 >> (16 * (backend.index() % Self::PER_ELEMENT))) as u16
    }
}

super::plain!(Backend<F>, BackendState);

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Backend<V4>>() == 16 && offset_of!(Backend<V4>, id) == 8);
    assert!(size_of::<Backend<V6>>() == 24 && offset_of!(Backend<V6>, id) == 20);
    assert!(cfg!(target_endian = "little"), "`backend_states` is addressed by half-words");
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_follows_generation_and_policy() {
        let id = Id::new(11, 3);
        assert_eq!(BackendState::position(id), (2, 3));
        let element = BackendState((BackendState::entry(id, SetPolicy::External.bit()) as u64) << 48);
        assert!(element.holds(id) && element.holds_in(id, SetPolicy::External));
        assert!(!element.holds_in(id, SetPolicy::Cluster));
        assert!(!element.holds(id.next()) && !element.holds_in(id.next(), SetPolicy::External));
        assert!(!BackendState(0).holds(id));
    }
}
