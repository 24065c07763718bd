//! `vip_filter`: mmap-able ARRAY of bits, written by the agent, read for every packet.
//!
//! Says "surely no VIP" before any hash look-up. Cluster IPs are entered by address (so that packets to
//! any of their ports are looked at), every other frontend by address, port and protocol (so that other traffic of the
//! node's own addresses is not).

use crate::Family;

/// Bits in the filter.
pub const BITS: u32 = 1 << 20;

/// Elements (64 bits each) of the array.
pub const ELEMENTS: u32 = BITS / 64;

/// Element and bit of a position.
#[inline(always)]
pub const fn position(bit: u32) -> (u32, u32) {
    (bit / 64, bit % 64)
}

/// The bit of an address.
#[inline(always)]
pub fn of_address<F: Family>(addr: &F::Addr) -> u32 {
    mix(F::fold(addr))
}

/// The bit of a frontend; the port in network byte order.
#[inline(always)]
pub fn of_frontend<F: Family>(addr: &F::Addr, port: u16, protocol: u8) -> u32 {
    mix(F::fold(addr) ^ ((port as u32) << 8 | protocol as u32).wrapping_mul(0xcc9e_2d51))
}

/// Fibonacci hashing: the upper bits of a product depend on all bits of the factor.
#[inline(always)]
const fn mix(word: u32) -> u32 {
    (word ^ (word >> 15)).wrapping_mul(0x9e37_79b1) >> (32 - BITS.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::V4;

    #[test]
    fn neighbouring_addresses_spread() {
        let addresses = (0..20_000u32).map(|i| (0x0a60_0000 + i).to_be());
        let bits: HashSet<u32> = addresses.map(|a| of_address::<V4>(&a)).collect();
        assert!(bits.iter().all(|&bit| bit < BITS));
        assert!(bits.len() > 19_000, "{} distinct bits for 20000 addresses", bits.len());
    }

    #[test]
    fn ports_and_protocols_of_one_address_spread() {
        let bits: HashSet<u32> = (30_000..32_768u16)
            .flat_map(|port| [6, 17].map(|protocol| of_frontend::<V4>(&7, port.to_be(), protocol)))
            .collect();
        assert!(bits.len() > 5_300, "{} distinct bits for 5536 frontends", bits.len());
    }
}
