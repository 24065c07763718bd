//! `reply_filter`: mmap-able ARRAY of lines of bytes, in which the programs insert the sources of flows' replies.
//!
//! Excludes most leaving packets that are no replies, before the flow map is looked up. A backend's address,
//! port and protocol have two bytes in a line; bytes and not bits, because a byte can be stored without reading
//! its neighbours.
//!
//! A program that inserts a flow entry of [`LookupPoint::ReverseEgress`] first inserts its source, with the
//! number of the current epoch. The agent walks over all flows in rounds. In each round it raises the number,
//! inserts the sources it finds, and at the end clears bytes of two epochs ago or earlier. Flows that were
//! opened meanwhile have inserted their sources themselves. Without an agent fingerprints stay, which only
//! costs look-ups.
//!
//! [`LookupPoint::ReverseEgress`]: super::flow::LookupPoint::ReverseEgress

use super::{filter, flow::FlowKey};
use crate::{
    Family,
    shared::{Published, Shared},
};

/// Bytes in a line: those of a cache line.
pub const LINE: u32 = 64;

/// Lines with fingerprints: 512 KiB, so that two of a thousand non-service packets are false positives when flows have ten thousand backends.
pub const LINES: u32 = 1 << LINE_BITS;
const LINE_BITS: u32 = 13;

/// The line behind them, whose first byte is the number of the epoch: 1 to 255, or 0 before the first.
pub const EPOCH: u32 = LINES;

/// Elements of the array.
pub const ELEMENTS: u32 = LINES + 1;

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct CacheLine(pub [u8; LINE as usize]);

super::plain!(CacheLine);

const _: () = assert!(size_of::<CacheLine>() == LINE as usize);

/// The fingerprint of a reply's source.
///
/// ```
/// use std::sync::atomic::AtomicU8;
///
/// use proxy_common::{
///     V4,
///     layout::reply_filter::{Fingerprint, LINE, contains, insert},
///     packet::PROTOCOL_UDP,
/// };
///
/// let backend = u32::from_ne_bytes([10, 244, 1, 7]);
/// let fingerprint = Fingerprint::of::<V4>(&backend, 53u16.to_be(), PROTOCOL_UDP);
/// // The line of the map that it is in, and the number of the epoch.
/// let (line, epoch) = ([const { AtomicU8::new(0) }; LINE as usize], AtomicU8::new(7));
/// let bytes = fingerprint.bytes.map(|at| &line[at as usize]);
/// assert!(!contains(bytes));
/// insert(&&epoch, bytes);
/// assert!(contains(bytes));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    /// The element.
    pub line: u32,
    /// Two bytes of it, or twice the same.
    pub bytes: [u32; 2],
}

impl Fingerprint {
    /// The fingerprint of a source, the port in network byte order.
    #[inline(always)]
    pub fn of<F: Family>(addr: &F::Addr, port: u16, protocol: u8) -> Self {
        const BYTE_BITS: u32 = LINE.trailing_zeros();
        let hash = filter::hash(filter::word::<F>(addr, port, protocol));
        let byte = |shift: u32| (hash >> (u64::BITS - LINE_BITS - shift)) as u32 & (LINE - 1);
        Self { line: (hash >> (u64::BITS - LINE_BITS)) as u32, bytes: [byte(BYTE_BITS), byte(2 * BYTE_BITS)] }
    }

    /// The fingerprint of the source in this key.
    #[inline(always)]
    pub fn of_source<F: Family>(key: &FlowKey<F>) -> Self {
        Self::of::<F>(&key.tuple.src, key.tuple.sport, key.protocol)
    }
}

/// The number of the next epoch.
pub const fn next_epoch(epoch: u8) -> u8 {
    if epoch == u8::MAX { 1 } else { epoch + 1 }
}

/// How many epochs ago this was the number, if the present one is `now`.
pub const fn epochs_since(epoch: u8, now: u8) -> u8 {
    if now >= epoch { now - epoch } else { now + (u8::MAX - epoch) }
}

/// For programs: inserts the fingerprint with these bytes, in the epoch whose number is in `epoch`. Must be
/// called before the flow's entry is inserted: a program that finds the entry must find the fingerprint.
#[inline(always)]
pub fn insert<B: Shared<u8>>(epoch: &B, bytes: [B; 2]) {
    let epoch = match epoch.load() {
        0 => 1,
        epoch => epoch,
    };
    for byte in bytes {
        // A store on each packet would take the cache line from other CPUs.
        if byte.load() != epoch {
            byte.store(epoch);
        }
    }
}

/// Whether the filter contains the fingerprint with these bytes.
#[inline(always)]
pub fn contains<B: Shared<u8>>([first, second]: [B; 2]) -> bool {
    first.load() != 0 && second.load() != 0
}

/// For the agent: begins an epoch, in which it inserts the source of every flow; returns its number.
pub fn begin(epoch: &impl Published<u8>) -> u8 {
    let begun = next_epoch(epoch.load());
    epoch.publish(begun);
    begun
}

/// Inserts a byte of a flow that the agent found.
pub fn renew(epoch: &impl Published<u8>, byte: &impl Published<u8>) {
    byte.publish(epoch.load());
}

/// Clears a byte at the end of the epoch with the number `begun`, in which every flow was inserted, unless it
/// has a newer number. Bytes of the epoch before stay, too, because a program may have read the number just
/// before it was raised. `epoch` is the present number: another agent may have begun epochs meanwhile.
pub fn expire(epoch: u8, begun: u8, byte: &impl Published<u8>) {
    let fingerprint = byte.load();
    if fingerprint != 0 && epochs_since(fingerprint, epoch) > epochs_since(begun, epoch) + 1 {
        // Only if no program has written it since.
        byte.replace(fingerprint, 0);
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests {
    use std::{collections::HashSet, vec};

    use super::*;
    use crate::V4;

    #[test]
    fn epochs_go_on_without_zero() {
        assert_eq!([0, 1, 254, 255].map(next_epoch), [1, 2, 255, 1]);
        for epoch in [1, 100, 255] {
            let (mut now, mut since) = (epoch, 0);
            while since < 254 {
                assert_eq!(epochs_since(epoch, now), since, "from {epoch} to {now}");
                (now, since) = (next_epoch(now), since + 1);
            }
        }
    }

    #[test]
    fn neighbouring_backends_spread() {
        let fingerprints =
            (0..20_000u32).map(|i| Fingerprint::of::<V4>(&(0x0af4_0000 + i).to_be(), 8080u16.to_be(), 6));
        let distinct: HashSet<Fingerprint> = fingerprints
            .inspect(|fingerprint| {
                assert!(fingerprint.line < LINES && fingerprint.bytes.iter().all(|byte| *byte < LINE))
            })
            .collect();
        assert!(distinct.len() > 19_950, "{} distinct fingerprints for 20000 backends", distinct.len());
    }

    #[test]
    fn few_false_positives_with_ten_thousand() {
        let mut marked = vec![[false; LINE as usize]; LINES as usize];
        for i in 0..10_000u32 {
            let Fingerprint { line, bytes } =
                Fingerprint::of::<V4>(&(0x0af4_0000 + i).to_be(), 8080u16.to_be(), 6);
            bytes.into_iter().for_each(|byte| marked[line as usize][byte as usize] = true);
        }
        let mistaken = (0..100_000u32).filter(|i| {
            let Fingerprint { line, bytes } =
                Fingerprint::of::<V4>(&(0x2e00_0000 + 7 * i).to_be(), 443u16.to_be(), 6);
            bytes.into_iter().all(|byte| marked[line as usize][byte as usize])
        });
        let mistaken = mistaken.count();
        assert!(mistaken < 400, "{mistaken} of 100000");
    }
}
