//! The effect of changed ports on SCTP's checksum, CRC32c (RFC 9260 appendix A), computed without reading the
//! packet.
//!
//! A CRC is linear: that of a changed message differs from the old one by the CRC of the difference, which is
//! zero everywhere but in the ports. So it suffices to shift the remainder of that word past the zero bytes
//! that follow it, a multiplication by x^(8 n) modulo the polynomial. The checksum does not cover addresses.

/// The polynomial of CRC32c, bits reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// 1, bits reflected: the highest bit is the constant term.
const ONE: u32 = 1 << 31;

/// Steps by powers of two: lengths up to 65,535 bytes.
const STEPS: usize = 16;

/// For each step and each nibble of a remainder: the nibble shifted past so many zero bytes. Indexed by nibble,
/// because with bits the kernel's verifier would follow both ways of a branch for each bit.
static PAST: [[[u32; 16]; 8]; STEPS] = past();

const fn past() -> [[[u32; 16]; 8]; STEPS] {
    let mut past = [[[0; 16]; 8]; STEPS];
    // x^8, then its square, and so on.
    let mut power = ONE >> 8;
    let mut step = 0;
    while step < STEPS {
        let mut nibble = 0;
        while nibble < 8 {
            let mut value = 0;
            while value < 16 {
                past[step][nibble][value] = multiply(power, (value as u32) << (4 * nibble));
                value += 1;
            }
            nibble += 1;
        }
        power = multiply(power, power);
        step += 1;
    }
    past
}

/// The product modulo the polynomial.
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut a, mut b, mut product) = (a, b, 0u32);
    while a != 0 {
        // Highest bit of `a` first: times 1, then x, and so on.
        if a >> 31 != 0 {
            product ^= b;
        }
        a <<= 1;
        b = if b & 1 != 0 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

/// The checksum after the first four bytes of a packet of `length` bytes changed by `difference` (old xor new).
///
/// Checksum and difference as little-endian words of the packet; `length` from the SCTP header on.
///
/// Zero stays zero. Either the packet is `CHECKSUM_PARTIAL`: the kernel computes the checksum later, and
/// includes the content of the field (`skb_crc32c_csum_help`). Or the peers agreed on a zero checksum (RFC
/// 9653). One packet in 2^32 has a checksum of zero, and is lost.
#[inline(always)]
pub fn update(checksum: u32, difference: u32, length: u16) -> u32 {
    if checksum == 0 {
        return 0;
    }
    // The word's own remainder is its product with x^32, as if it were shifted past its own four bytes too.
    let mut change = difference;
    let mut step = 0;
    while step < STEPS {
        if length >> step & 1 != 0 {
            let row = &PAST[step];
            let nibble = |n: usize| row[n][(change >> (4 * n) & 15) as usize];
            change =
                nibble(0) ^ nibble(1) ^ nibble(2) ^ nibble(3) ^ nibble(4) ^ nibble(5) ^ nibble(6) ^ nibble(7);
        }
        step += 1;
    }
    checksum ^ change
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= *byte as u32;
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(crc & 1));
            }
        }
        !crc
    }

    #[test]
    fn the_reference_is_crc32c() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_computation_from_scratch(
            mut packet in proptest::collection::vec(any::<u8>(), 12..2_000),
            ports in any::<[u8; 4]>(),
        ) {
            packet[8..12].fill(0);
            let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
            let before = crc32c(&packet);
            let difference = word(&packet) ^ word(&ports);
            packet[..4].copy_from_slice(&ports);
            prop_assert_eq!(update(before, difference, packet.len() as u16), crc32c(&packet));
        }
    }

    #[test]
    fn a_partial_checksum_stays() {
        assert_eq!(update(0, 0x5a, 1_000), 0);
    }

    #[test]
    fn the_longest_packet() {
        let mut packet: Vec<u8> = (0..65_535u32).map(|i| (i * 7) as u8).collect();
        packet[8..12].fill(0);
        let before = crc32c(&packet);
        packet[0] ^= 0x5a;
        assert_eq!(update(before, 0x5a, 65_535), crc32c(&packet));
    }
}
