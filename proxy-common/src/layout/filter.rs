//! `vip_filter`: mmap-able ARRAY of bits, written by the agent, read for every packet.
//!
//! Excludes destinations that are no VIP before any hash look-up. The agent inserts cluster IPs, and load
//! balancers' addresses that are not the node's, by address: so the programs look at packets to all of their
//! ports. It inserts every other frontend by address, port and protocol: so other traffic to the node's own
//! addresses is not looked up. It inserts source addresses for connections to remote endpoints with a protocol
//! that no packet has.

use crate::Family;

/// Bits in the filter: 1 MiB. With a hundred thousand frontends, two in a thousand non-service packets are
/// false positives, by address or by address, port and protocol.
pub const BITS: u32 = 1 << 23;

/// Elements (64 bits each) of the array.
pub const ELEMENTS: u32 = BITS / u64::BITS;

/// Fingerprint of an address or a frontend: two bits of one element, so that a test takes one load.
///
/// ```
/// use proxy_common::{V4, layout::filter, packet::PROTOCOL_TCP};
///
/// let mut elements = vec![0u64; filter::ELEMENTS as usize];
/// let node = u32::from_ne_bytes([192, 0, 2, 1]);
/// let node_port = filter::of_frontend::<V4>(&node, 30_080u16.to_be(), PROTOCOL_TCP);
/// elements[node_port.element as usize] |= node_port.mask;
/// assert!(node_port.is_in(elements[node_port.element as usize]));
/// // Other traffic of the node's address is no Service's.
/// let ssh = filter::of_frontend::<V4>(&node, 22u16.to_be(), PROTOCOL_TCP);
/// assert!(!ssh.is_in(elements[ssh.element as usize]));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// Index of the element.
    pub element: u32,
    /// The bits in the element.
    pub mask: u64,
}

impl Fingerprint {
    #[inline(always)]
    fn of(word: u32) -> Self {
        const ELEMENT: u32 = ELEMENTS.trailing_zeros();
        const BIT: u32 = u64::BITS.trailing_zeros();
        let hash = hash(word);
        let bit = |shift: u32| 1u64 << (hash >> shift & 63);
        Self {
            element: (hash >> (u64::BITS - ELEMENT)) as u32,
            mask: bit(u64::BITS - ELEMENT - BIT) | bit(u64::BITS - ELEMENT - 2 * BIT),
        }
    }

    /// Whether its bits are set in this element.
    #[inline(always)]
    pub const fn is_in(&self, element: u64) -> bool {
        element & self.mask == self.mask
    }

    /// The positions of its bits in the whole filter; twice the same if the two bits coincide.
    pub const fn bits(&self) -> [u32; 2] {
        let first = self.element * u64::BITS;
        [first + self.mask.trailing_zeros(), first + u64::BITS - 1 - self.mask.leading_zeros()]
    }
}

/// Fibonacci hashing: the upper bits of a product depend on all bits of the factor.
#[inline(always)]
pub(super) fn hash(word: u32) -> u64 {
    let word = (word ^ word >> 15) as u64;
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// An address with a port (network byte order) and a protocol, mixed into one word.
#[inline(always)]
pub(super) fn word<F: Family>(addr: &F::Addr, port: u16, protocol: u8) -> u32 {
    F::fold(addr) ^ ((port as u32) << 8 | protocol as u32).wrapping_mul(0xcc9e_2d51)
}

/// Element and bit of a position in the whole filter.
#[inline(always)]
pub const fn position(bit: u32) -> (u32, u32) {
    (bit / u64::BITS, bit % u64::BITS)
}

/// The fingerprint of an address.
#[inline(always)]
pub fn of_address<F: Family>(addr: &F::Addr) -> Fingerprint {
    Fingerprint::of(F::fold(addr))
}

/// The fingerprint of an address that connections to remote endpoints may have as source. It uses a protocol
/// that no frontend has.
#[inline(always)]
pub fn of_snat_source<F: Family>(addr: &F::Addr) -> Fingerprint {
    const RESERVED: u8 = 255;
    of_frontend::<F>(addr, 0, RESERVED)
}

/// The fingerprint of a frontend; the port in network byte order.
#[inline(always)]
pub fn of_frontend<F: Family>(addr: &F::Addr, port: u16, protocol: u8) -> Fingerprint {
    Fingerprint::of(word::<F>(addr, port, protocol))
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, vec, vec::Vec};

    use super::*;
    use crate::V4;

    #[test]
    fn neighbouring_addresses_spread() {
        let addresses = (0..20_000u32).map(|i| (0x0a60_0000 + i).to_be());
        let fingerprints: HashSet<Fingerprint> = addresses.map(|addr| of_address::<V4>(&addr)).collect();
        assert!(fingerprints.iter().all(|fingerprint| fingerprint.element < ELEMENTS));
        assert!(
            fingerprints.len() > 19_950,
            "{} distinct fingerprints for 20000 addresses",
            fingerprints.len()
        );
    }

    #[test]
    fn ports_and_protocols_of_one_address_spread() {
        let fingerprints: HashSet<Fingerprint> = (30_000..32_768u16)
            .flat_map(|port| [6, 17].map(|protocol| of_frontend::<V4>(&7, port.to_be(), protocol)))
            .collect();
        assert!(
            fingerprints.len() > 5_500,
            "{} distinct fingerprints for 5536 frontends",
            fingerprints.len()
        );
    }

    #[test]
    fn a_fingerprint_is_its_bits() {
        for word in [0, 1, 0x0a60_0001, u32::MAX] {
            let fingerprint = Fingerprint::of(word);
            let mut filter = vec![0u64; ELEMENTS as usize];
            for bit in fingerprint.bits() {
                let (element, bit) = position(bit);
                filter[element as usize] |= 1 << bit;
            }
            assert_eq!(filter[fingerprint.element as usize], fingerprint.mask);
            assert!(fingerprint.is_in(filter[fingerprint.element as usize]) && !fingerprint.is_in(0));
        }
    }

    #[test]
    fn few_false_positives_with_a_hundred_thousand() {
        let mut filter = vec![0u64; ELEMENTS as usize];
        for i in 0..100_000u32 {
            let fingerprint = of_address::<V4>(&(0x0a60_0000 + i).to_be());
            filter[fingerprint.element as usize] |= fingerprint.mask;
        }
        let others: Vec<u32> = (0..100_000u32).map(|i| (0x0af4_0000 + 3 * i).to_be()).collect();
        let mistaken = others
            .iter()
            .map(of_address::<V4>)
            .filter(|fingerprint| fingerprint.is_in(filter[fingerprint.element as usize]));
        let mistaken = mistaken.count();
        assert!(mistaken < 400, "{mistaken} of 100000");
    }
}
