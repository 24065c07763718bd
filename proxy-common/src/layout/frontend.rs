//! `frontends_v4`, `frontends_v6`: HASH, written by the agent, read for each new flow and each connect.

use core::num::NonZeroU64;

use super::id::Id;
use crate::{Family, V4, V6};

/// Address, port and protocol that a client connects to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FrontendKey<F: Family> {
    /// The VIP, or [`Family::UNSPECIFIED`] for a nodePort, which stands for all nodePort addresses of the node.
    pub addr: F::Addr,
    /// Network byte order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub zero: u8,
}

impl<F: Family> FrontendKey<F> {
    /// A key; the port in network byte order.
    #[inline(always)]
    pub fn new(addr: F::Addr, port: u16, protocol: u8) -> Self {
        Self { addr, port, protocol, zero: 0 }
    }

    /// The key that marks an address as a cluster IP or a load balancer's: no frontend has port 0.
    #[inline(always)]
    pub fn of_address(addr: F::Addr) -> Self {
        Self::new(addr, 0, 0)
    }

    #[inline(always)]
    fn same(&self, other: &Self) -> bool {
        F::same(&self.addr, &other.addr) & (self.port == other.port) & (self.protocol == other.protocol)
    }
}

/// The target of a frontend, and a copy of the key.
///
/// The kernel recycles elements of a hash under its readers, so a look-up can yield the value of another key or
/// a torn one (seen 65 and 7 times in 86 million look-ups under churn). A reader therefore loads `target` once and
/// compares `key` after it. The copy stands first because the kernel writes values in ascending order: a reader that sees
/// the new target sees the new copy.
///
/// ```
/// use proxy_common::{
///     V4,
///     layout::{
///         frontend::{FRONTEND_CLUSTER_IP, Frontend, FrontendKey, Target},
///         id::Id,
///     },
///     packet::PROTOCOL_TCP,
/// };
///
/// let key = FrontendKey::<V4>::new(u32::from_ne_bytes([10, 96, 0, 1]), 443u16.to_be(), PROTOCOL_TCP);
/// let target = Target::new(Id::new(7, 1), FRONTEND_CLUSTER_IP).ok_or("an id that names nothing")?;
/// let value = Frontend::new(key, target);
/// assert_eq!(value.checked(&key).map(Target::service), Some(Id::new(7, 1)));
/// // The element was recycled for another key.
/// let other = FrontendKey { port: 80u16.to_be(), ..key };
/// assert_eq!(value.checked(&other), None);
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Frontend<F: Family> {
    /// The key this value was written for.
    pub key: FrontendKey<F>,
    /// Zero.
    pad: F::Pad,
    /// A packed [`Target`].
    target: u64,
}

/// The target of a frontend: a service port (see `SetPolicy` for its sets) and `FRONTEND_*` bits, in one word.
///
/// Never zero, because no id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Target(NonZeroU64);

impl Target {
    /// A target; `None` with [`Id::NONE`].
    #[inline(always)]
    pub const fn new(service: Id, flags: u32) -> Option<Self> {
        if service.0 == 0 {
            return None;
        }
        Self::from_word((flags as u64) << 32 | service.0 as u64)
    }

    #[inline(always)]
    const fn from_word(word: u64) -> Option<Self> {
        match NonZeroU64::new(word) {
            Some(word) => Some(Self(word)),
            None => None,
        }
    }

    /// The service port.
    #[inline(always)]
    pub const fn service(self) -> Id {
        Id(self.0.get() as u32)
    }

    /// `FRONTEND_*` bits.
    #[inline(always)]
    pub const fn flags(self) -> u32 {
        (self.0.get() >> 32) as u32
    }
}

/// The frontend is a cluster IP: not for clients outside, unless the agent is configured so.
pub const FRONTEND_CLUSTER_IP: u32 = 1;
/// Only clients in the service port's source ranges may use it: see [`super::source_range`].
pub const FRONTEND_SOURCE_RANGES: u32 = 2;
/// Not a frontend, but all other ports of a cluster IP or of a load balancer's address: under
/// [`FrontendKey::of_address`].
pub const FRONTEND_ADDRESS: u32 = 4;

impl<F: Family> Frontend<F> {
    /// The value to store under `key`.
    pub fn new(key: FrontendKey<F>, target: Target) -> Self {
        Self { key, pad: F::Pad::default(), target: target.0.get() }
    }

    /// Reads a value that was copied out of the map; `None` when it is not the value of `key`.
    pub fn checked(&self, key: &FrontendKey<F>) -> Option<Target> {
        if self.key.same(key) { Target::from_word(self.target) } else { None }
    }

    /// Reads a value in the map, which the kernel may change meanwhile; `None` when it is not the value of
    /// `key`.
    ///
    /// # Safety
    /// `value` points to a readable value of this type.
    #[inline(always)]
    pub unsafe fn read(value: *const Self, key: &FrontendKey<F>) -> Option<Target> {
        // SAFETY: the caller's promise. Volatile keeps the order: target first, then the copy of the key.
        let (target, copy) = unsafe {
            ((&raw const (*value).target).read_volatile(), (&raw const (*value).key).read_volatile())
        };
        if copy.same(key) { Target::from_word(target) } else { None }
    }
}

super::plain!(FrontendKey<F>, Frontend<F>);

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<FrontendKey<V4>>() == 8);
    assert!(size_of::<FrontendKey<V6>>() == 20);
    assert!(offset_of!(FrontendKey<V4>, port) == 4 && offset_of!(FrontendKey<V4>, protocol) == 6);
    assert!(offset_of!(FrontendKey<V6>, port) == 16 && offset_of!(FrontendKey<V6>, protocol) == 18);
    assert!(size_of::<Frontend<V4>>() == 16 && offset_of!(Frontend<V4>, target) == 8);
    assert!(size_of::<Frontend<V6>>() == 32 && offset_of!(Frontend<V6>, target) == 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_written_for_another_key_is_refused() {
        let ours = FrontendKey::<V4>::new(1, 80, 6);
        let target = Target::new(Id::new(7, 1), FRONTEND_CLUSTER_IP).unwrap();
        let value = Frontend::new(ours, target);
        for (key, expected) in [
            (ours, Some(target)),
            (FrontendKey::new(2, 80, 6), None),
            (FrontendKey::new(1, 81, 6), None),
            (FrontendKey::new(1, 80, 17), None),
        ] {
            // SAFETY: `value` is on the stack.
            assert_eq!(unsafe { Frontend::read(&value, &key) }, expected, "{key:?}");
        }
    }
}
