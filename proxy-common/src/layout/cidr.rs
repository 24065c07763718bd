//! `service_cidrs_v4`, `service_cidrs_v6`: ARRAY of one, written by the agent. Read for packets that leave by
//! an uplink.

use crate::{Family, V4, V6};

/// A prefix in a form that needs no loop to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cidr<F: Family> {
    /// The first address.
    pub base: F::Addr,
    /// Ones for the bits of the prefix; zero: the element is unused.
    pub mask: F::Addr,
}

/// The ranges of service addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceCidrs<F: Family>(pub [Cidr<F>; ServiceCidrs::<V4>::MAX]);

impl<F: Family> ServiceCidrs<F> {
    /// Maximum number of ranges.
    pub const MAX: usize = 4;

    /// Whether the address is in one of them.
    #[inline(always)]
    pub fn contains(&self, addr: &F::Addr) -> bool {
        let [a, b, c, d] = &self.0;
        a.contains(addr) || b.contains(addr) || c.contains(addr) || d.contains(addr)
    }
}

impl<F: Family> Cidr<F> {
    #[inline(always)]
    fn contains(&self, addr: &F::Addr) -> bool {
        !F::same(&self.mask, &F::UNSPECIFIED) && F::within(addr, &self.base, &self.mask)
    }
}

super::plain!(Cidr<F>, ServiceCidrs<F>);

const _: () = assert!(size_of::<ServiceCidrs<V4>>() == 32 && size_of::<ServiceCidrs<V6>>() == 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unused_element_contains_nothing() {
        let addr = |bytes| u32::from_ne_bytes(bytes);
        let mut cidrs = ServiceCidrs::<V4>::default();
        assert!(!cidrs.contains(&addr([0, 0, 0, 0])));
        cidrs.0[2] = Cidr { base: addr([10, 96, 0, 0]), mask: addr([255, 240, 0, 0]) };
        for (ip, is_within) in [([10, 96, 0, 1], true), ([10, 111, 255, 255], true), ([10, 112, 0, 0], false)]
        {
            assert_eq!(cidrs.contains(&addr(ip)), is_within, "{ip:?}");
        }
    }
}
