//! The two address families, so that everything else is written once.

use core::{fmt::Debug, hash::Hash};

/// An address family: exact-width addresses, never IPv4 inside IPv6.
pub trait Family: Copy + Debug + Default + Eq + Hash + 'static {
    /// An address as it stands in a packet.
    type Addr: Copy + Debug + Default + Eq + Hash + 'static;

    /// Explicit zero bytes that bring an address, a port and a protocol to a multiple of 8: none or 4.
    type Pad: Copy + Debug + Default + Eq + Hash + 'static;

    /// Explicit zero bytes that bring a backend's slot to a multiple of 8: 4 or none.
    type SlotPad: Copy + Debug + Default + Eq + Hash + 'static;

    /// Index of the family in arrays by family: 0 for IPv4, 1 for IPv6.
    const INDEX: usize;

    /// The unspecified address; in a frontend's key it stands for every nodePort address of the node.
    const UNSPECIFIED: Self::Addr;

    /// Equality by words: comparing with `==` would call a comparison function in the kernel programs.
    fn same(a: &Self::Addr, b: &Self::Addr) -> bool;

    /// Whether the bits that `mask` selects equal those of `base`.
    fn within(addr: &Self::Addr, base: &Self::Addr, mask: &Self::Addr) -> bool;

    /// All bits of the address, mixed into 32.
    fn fold(addr: &Self::Addr) -> u32;

    /// The sum of the address's 16-bit words, not yet folded (RFC 1071).
    fn sum(addr: &Self::Addr) -> u32;

    /// Whether the address never leaves the host (127/8, ::1).
    fn is_loopback(addr: &Self::Addr) -> bool;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct V6;

impl Family for V4 {
    type Addr = u32;
    type Pad = ();
    type SlotPad = u32;
    const INDEX: usize = 0;
    const UNSPECIFIED: u32 = 0;

    #[inline(always)]
    fn same(a: &u32, b: &u32) -> bool {
        *a == *b
    }

    #[inline(always)]
    fn within(addr: &u32, base: &u32, mask: &u32) -> bool {
        *addr & *mask == *base
    }

    #[inline(always)]
    fn fold(addr: &u32) -> u32 {
        *addr
    }

    #[inline(always)]
    fn sum(addr: &u32) -> u32 {
        (*addr & 0xffff) + (*addr >> 16)
    }

    #[inline(always)]
    fn is_loopback(addr: &u32) -> bool {
        u32::from_be(*addr) >> 24 == 127
    }
}

impl Family for V6 {
    type Addr = [u32; 4];
    type Pad = u32;
    type SlotPad = ();
    const INDEX: usize = 1;
    const UNSPECIFIED: [u32; 4] = [0; 4];

    #[inline(always)]
    fn same(a: &[u32; 4], b: &[u32; 4]) -> bool {
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }

    #[inline(always)]
    fn within(addr: &[u32; 4], base: &[u32; 4], mask: &[u32; 4]) -> bool {
        let differs = |i: usize| (addr[i] & mask[i]) ^ base[i];
        differs(0) | differs(1) | differs(2) | differs(3) == 0
    }

    #[inline(always)]
    fn fold(addr: &[u32; 4]) -> u32 {
        // Odd multipliers keep the words apart: pods of one node differ in the last word only.
        addr[0]
            .wrapping_mul(0x85eb_ca6b)
            .wrapping_add(addr[1].wrapping_mul(0xc2b2_ae35))
            .wrapping_add(addr[2].wrapping_mul(0x27d4_eb2f))
            .wrapping_add(addr[3])
    }

    #[inline(always)]
    fn sum(addr: &[u32; 4]) -> u32 {
        // 2^16 and 2^32 are 1 in one's complement of 16 bits, so wider words may be added first.
        let sum = addr[0] as u64 + addr[1] as u64 + addr[2] as u64 + addr[3] as u64;
        (sum & 0xffff) as u32 + (sum >> 16 & 0xffff) as u32 + (sum >> 32) as u32
    }

    #[inline(always)]
    fn is_loopback(addr: &[u32; 4]) -> bool {
        Self::same(addr, &[0, 0, 0, 1u32.to_be()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses() {
        assert!(V4::is_loopback(&u32::from_ne_bytes([127, 0, 0, 1])));
        assert!(V4::is_loopback(&u32::from_ne_bytes([127, 9, 9, 9])));
        assert!(!V4::is_loopback(&u32::from_ne_bytes([10, 0, 0, 127])));
        let mut one = [0u8; 16];
        one[15] = 1;
        let words = |b: [u8; 16]| {
            core::array::from_fn(|i| u32::from_ne_bytes([b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]]))
        };
        assert!(V6::is_loopback(&words(one)));
        assert!(!V6::is_loopback(&words([0; 16])));
    }
}
