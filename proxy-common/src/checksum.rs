//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! Sums are of 16-bit words as they stand in the packet, in either byte order of the host: the sum of
//! swapped words is the swapped sum.

use crate::{Family, layout::flow::Tuple};

/// The difference that a change of words makes to the sum: `to - from` in one's complement.
///
/// Both arguments are unfolded sums below 2^20, as [`Family::sum`] makes them.
#[inline(always)]
pub fn difference(from: u32, to: u32) -> u32 {
    // ~from in 16 bits, per carry: fold first so that the complement is of one word.
    to + (!fold(from) as u16 as u32)
}

/// Folds a sum to 16 bits, with end-around carry.
#[inline(always)]
pub fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

/// The checksum field after the summed words changed by `difference` (RFC 1624, equation 3).
///
/// ```
/// use proxy_common::checksum::{difference, update};
///
/// // The example of RFC 1624 section 4.
/// assert_eq!(update(0xdd2f, difference(0x5555, 0x3285)), 0x0000);
/// ```
#[inline(always)]
pub fn update(checksum: u16, difference: u32) -> u16 {
    !fold((!checksum) as u32 + fold(difference)) as u16
}

/// Like [`update`] for UDP: 0 (no checksum) stays 0, and a result of 0 is sent as 0xffff (RFC 768).
///
/// ```
/// use proxy_common::checksum::{difference, update_udp};
///
/// let change = difference(0x5555, 0x3285);
/// assert_eq!(update_udp(0xdd2f, change), 0xffff);
/// assert_eq!(update_udp(0, change), 0);
/// ```
#[inline(always)]
pub fn update_udp(checksum: u16, difference: u32) -> u16 {
    if checksum == 0 {
        return 0;
    }
    match update(checksum, difference) {
        0 => 0xffff,
        updated => updated,
    }
}

/// Whether two words are the same in one's complement, which has two zeros.
#[inline(always)]
pub fn same(a: u16, b: u16) -> bool {
    let one_zero = |word: u16| if word == 0xffff { 0 } else { word };
    one_zero(a) == one_zero(b)
}

/// The sum of a TCP or UDP pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1), folded; `addresses` is the
/// [`sum_of_addresses`], `length` that of the transport header and payload in bytes.
#[inline(always)]
pub fn pseudo_header(addresses: u32, protocol: u8, length: u16) -> u16 {
    fold(addresses + (protocol as u16).to_be() as u32 + length.to_be() as u32) as u16
}

/// The sum of both addresses, not folded.
#[inline(always)]
pub fn sum_of_addresses<F: Family>(tuple: &Tuple<F>) -> u32 {
    F::sum(&tuple.src) + F::sum(&tuple.dst)
}

/// The difference that translating the addresses of a packet makes to its sums.
///
/// ```
/// use proxy_common::{V4, checksum, layout::flow::Tuple};
///
/// let addr = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
/// let from = Tuple::<V4> { src: addr([10, 244, 1, 7]), dst: addr([10, 96, 0, 1]), sport: 0, dport: 443u16.to_be() };
/// let to = Tuple { dst: addr([10, 244, 2, 9]), dport: 8443u16.to_be(), ..from };
/// let there = checksum::update(0x1234, checksum::addresses(&from, &to) + checksum::ports(&from, &to));
/// let back = checksum::update(there, checksum::addresses(&to, &from) + checksum::ports(&to, &from));
/// assert_eq!(back, 0x1234);
/// ```
#[inline(always)]
pub fn addresses<F: Family>(from: &Tuple<F>, to: &Tuple<F>) -> u32 {
    difference(sum_of_addresses(from), sum_of_addresses(to))
}

/// The difference that translating the ports makes.
#[inline(always)]
pub fn ports<F: Family>(from: &Tuple<F>, to: &Tuple<F>) -> u32 {
    difference(from.sport as u32 + from.dport as u32, to.sport as u32 + to.dport as u32)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        V4, V6,
        packet::{PROTOCOL_UDP, UDP},
    };

    /// Words whose sums carry, and words whose sums do not.
    fn word() -> impl Strategy<Value = u16> {
        prop_oneof![Just(0u16), Just(0xffff), Just(1), Just(0xfffe), any::<u16>()]
    }

    /// The words of a UDP datagram with its pseudo header (RFC 768, RFC 8200 section 8.1), without the checksum.
    fn datagram<F: Family>(tuple: &Tuple<F>, addr: fn(&F::Addr) -> Vec<u16>, payload: &[u16]) -> Vec<u16> {
        let length = (UDP + 2 * payload.len()) as u16;
        let pseudo = [(PROTOCOL_UDP as u16).to_be(), length.to_be()];
        let header = [tuple.sport, tuple.dport, length.to_be()];
        [addr(&tuple.src), addr(&tuple.dst), pseudo.to_vec(), header.to_vec(), payload.to_vec()].concat()
    }

    /// A translation of addresses and ports at once, and in the two steps that tc takes: both as computed from scratch.
    fn translates<F: Family>(
        from: &Tuple<F>,
        to: &Tuple<F>,
        addr: fn(&F::Addr) -> Vec<u16>,
        payload: &[u16],
    ) -> Result<(), TestCaseError> {
        // UDP sends 0xffff instead of 0, which means no checksum.
        let sent = |checksum: u16| if checksum == 0 { 0xffff } else { checksum };
        let before = sent(full(&datagram(from, addr, payload)));
        let expected = sent(full(&datagram(to, addr, payload)));
        let (addresses, ports) = (addresses(from, to), ports(from, to));
        prop_assert_eq!(update_udp(before, addresses + ports), expected);
        prop_assert_eq!(update_udp(update_udp(before, addresses), ports), expected);
        prop_assert_eq!(update_udp(0, addresses + ports), 0, "none stays none");
        // For TCP, 0 is an ordinary checksum; the remainder makes the two zeros of one's complement equal.
        let tcp = |words: &[u16]| full(words) % 0xffff;
        let (tcp_before, tcp_after) = (full(&datagram(from, addr, payload)), datagram(to, addr, payload));
        prop_assert_eq!(update(tcp_before, addresses + ports) % 0xffff, tcp(&tcp_after));
        Ok(())
    }

    fn halves(words: &[u32]) -> Vec<u16> {
        words.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]).collect()
    }

    fn v4() -> impl Strategy<Value = u32> {
        [word(), word()].prop_map(|[a, b]| (a as u32) << 16 | b as u32)
    }

    fn v6() -> impl Strategy<Value = [u32; 4]> {
        [v4(), v4(), v4(), v4()]
    }

    fn tuple<F: Family>(
        addr: impl Strategy<Value = F::Addr>,
        other: impl Strategy<Value = F::Addr>,
    ) -> impl Strategy<Value = Tuple<F>>
    where
        F::Addr: core::fmt::Debug,
    {
        (addr, other, word(), word()).prop_map(|(src, dst, sport, dport)| Tuple { src, dst, sport, dport })
    }

    fn full(words: &[u16]) -> u16 {
        let mut sum = 0u32;
        for &word in words {
            sum = fold(sum + word as u32);
        }
        !(sum as u16)
    }

    proptest! {
        /// An update in place equals a computation from scratch, carry boundaries included.
        #[test]
        fn incremental_equals_full(
            mut words in proptest::collection::vec(prop_oneof![Just(0u16), Just(0xffffu16), any::<u16>()], 4..40),
            new in proptest::collection::vec(prop_oneof![Just(0u16), Just(0xffffu16), any::<u16>()], 4),
        ) {
            let before = full(&words);
            let old: u32 = words[..4].iter().map(|&w| w as u32).sum();
            let change = difference(old, new.iter().map(|&w| w as u32).sum());
            words[..4].copy_from_slice(&new);
            let expected = full(&words);
            let got = update(before, change);
            // 0 and 0xffff are the same number in one's complement; only the all-zero message keeps them apart.
            prop_assert!(got == expected || (got ^ expected == 0xffff && (got == 0 || expected == 0)));
        }

        #[test]
        fn translated_ipv4_packets_have_the_checksum_of_new_ones(
            from in tuple::<V4>(v4(), v4()),
            to in tuple::<V4>(v4(), v4()),
            payload in proptest::collection::vec(word(), 0..20),
        ) {
            translates(&from, &to, |addr| halves(&[*addr]), &payload)?;
        }

        #[test]
        fn translated_ipv6_packets_have_the_checksum_of_new_ones(
            from in tuple::<V6>(v6(), v6()),
            to in tuple::<V6>(v6(), v6()),
            payload in proptest::collection::vec(word(), 0..20),
        ) {
            translates(&from, &to, |addr| halves(addr), &payload)?;
        }

        #[test]
        fn udp_never_becomes_unchecked(checksum in 1..=u16::MAX, from in any::<u16>(), to in any::<u16>()) {
            prop_assert_ne!(update_udp(checksum, difference(from as u32, to as u32)), 0);
        }
    }

    #[test]
    fn udp_without_checksum_stays_without() {
        assert_eq!(update_udp(0, difference(1, 2)), 0);
    }

    #[test]
    fn v6_sum_counts_every_word() {
        let words: Vec<u32> = (0..4).map(|i| 0x0001_0002 << i).collect();
        let addr = [words[0], words[1], words[2], words[3]];
        assert_eq!(V6::sum(&addr), 3 + 6 + 12 + 24);
    }
}
