//! `answers`: mmap-able ARRAY of lines of bytes, in which the programs mark where answers of flows come from.
//!
//! Says "surely no answer" before the flow map is asked, of most packets on their way out. A backend's address, port and
//! protocol have two bytes in a line; bytes and not bits, because a byte can be stored without reading its neighbours.
//!
//! A program that inserts a flow entry of [`Edge::ReverseEgress`] marks its source before, with the number of the current round. The
//! agent goes through all flows again and again; with each round it raises the number, marks anew what it meets, and at
//! the end clears bytes that were last marked two rounds ago or earlier. Flows that were opened meanwhile have marked their
//! own. Without an agent marks stay, which costs look-ups and nothing else.
//!
//! [`Edge::ReverseEgress`]: super::flow::Edge::ReverseEgress

use super::{filter, flow::FlowKey};
use crate::Family;

/// Bytes in a line: those of a cache line.
pub const LINE: u32 = 64;

/// Lines with marks: 512 KiB, so that of a thousand strangers two are mistaken when flows have ten thousand backends.
pub const LINES: u32 = 1 << LINE_BITS;
const LINE_BITS: u32 = 13;

/// The line behind them, whose first byte is the number of the round: 1 to 255, or 0 before the first.
pub const ROUND: u32 = LINES;

/// Elements of the array.
pub const ELEMENTS: u32 = LINES + 1;

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Line(pub [u8; LINE as usize]);

super::plain!(Line);

const _: () = assert!(size_of::<Line>() == LINE as usize);

/// What stands for where answers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// The element.
    pub line: u32,
    /// Two bytes of it, or twice the same.
    pub bytes: [u32; 2],
}

impl Mark {
    /// The mark of a source, the port in network byte order.
    #[inline(always)]
    pub fn of<F: Family>(addr: &F::Addr, port: u16, protocol: u8) -> Self {
        const BYTE_BITS: u32 = LINE.trailing_zeros();
        let hash = filter::hash(filter::word::<F>(addr, port, protocol));
        let byte = |shift: u32| (hash >> (u64::BITS - LINE_BITS - shift)) as u32 & (LINE - 1);
        Self { line: (hash >> (u64::BITS - LINE_BITS)) as u32, bytes: [byte(BYTE_BITS), byte(2 * BYTE_BITS)] }
    }

    /// The mark of what is looked up with this key.
    #[inline(always)]
    pub fn of_source<F: Family>(key: &FlowKey<F>) -> Self {
        Self::of::<F>(&key.tuple.src, key.tuple.sport, key.protocol)
    }
}

/// The number after this one.
pub const fn next_round(round: u8) -> u8 {
    if round == u8::MAX { 1 } else { round + 1 }
}

/// How many rounds ago this was the number, if it is `now` now.
pub const fn rounds_since(round: u8, now: u8) -> u8 {
    if now >= round { now - round } else { now + (u8::MAX - round) }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, vec};

    use super::*;
    use crate::V4;

    #[test]
    fn rounds_go_on_without_zero() {
        assert_eq!([0, 1, 254, 255].map(next_round), [1, 2, 255, 1]);
        for round in [1, 100, 255] {
            let (mut now, mut since) = (round, 0);
            while since < 254 {
                assert_eq!(rounds_since(round, now), since, "from {round} to {now}");
                (now, since) = (next_round(now), since + 1);
            }
        }
    }

    #[test]
    fn neighbouring_backends_spread() {
        let marks = (0..20_000u32).map(|i| Mark::of::<V4>(&(0x0af4_0000 + i).to_be(), 8080u16.to_be(), 6));
        let distinct: HashSet<Mark> = marks
            .inspect(|mark| assert!(mark.line < LINES && mark.bytes.iter().all(|byte| *byte < LINE)))
            .collect();
        assert!(distinct.len() > 19_950, "{} distinct marks for 20000 backends", distinct.len());
    }

    #[test]
    fn few_strangers_are_mistaken_for_one_of_ten_thousand() {
        let mut marked = vec![[false; LINE as usize]; LINES as usize];
        for i in 0..10_000u32 {
            let Mark { line, bytes } = Mark::of::<V4>(&(0x0af4_0000 + i).to_be(), 8080u16.to_be(), 6);
            bytes.into_iter().for_each(|byte| marked[line as usize][byte as usize] = true);
        }
        let mistaken = (0..100_000u32).filter(|i| {
            let Mark { line, bytes } = Mark::of::<V4>(&(0x2e00_0000 + 7 * i).to_be(), 443u16.to_be(), 6);
            bytes.into_iter().all(|byte| marked[line as usize][byte as usize])
        });
        let mistaken = mistaken.count();
        assert!(mistaken < 400, "{mistaken} of 100000");
    }
}
