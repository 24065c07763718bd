//! The mark of its route that an entry of a flow with SNAT has, in [`Flow::mac`](super::flow::Flow::mac): such flows need no MAC there.
//!
//! A CPU's FIB cache has room for a few hundred pairs of addresses. A node has many more clients than that, and few next hops. So each
//! next hop has a slot in `hop_routes_*`, which all CPUs share, and entries have the slot of the next hop that the FIB last named for them.

use super::flow::Mac;

/// How long a route is used without a new query, in jiffies: between 32 ms (HZ 1000) and 320 ms (HZ 100).
pub const FRESH: u32 = 32;

/// Bits of the time in a mark. It comes round after 70 minutes (HZ 1000): a flow that was silent for that long, within [`FRESH`], takes
/// an old mark for a new one. Then the slot most likely still has the same next hop.
const TIME_BITS: u32 = 22;
const TIME: u32 = (1 << TIME_BITS) - 1;
/// Bits of the time beside the slot.
const HIGH_BITS: u32 = TIME_BITS - u16::BITS;

/// Which slot has the route of a flow, since when, and for which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteMark {
    /// The slot of the next hop: ten bits.
    pub slot: u32,
    /// When the FIB named the next hop, in jiffies.
    pub looked_up: u32,
    /// The size in bytes of the packet for which it did; 0: no mark.
    pub size: u16,
}

impl RouteMark {
    /// From an entry with SNAT. [`Mac::NONE`] is no mark.
    #[inline(always)]
    pub fn from_mac(mac: Mac) -> Self {
        let [first, second, size] = mac.0;
        let high = first as u32 & ((1 << HIGH_BITS) - 1);
        Self { slot: first as u32 >> HIGH_BITS, looked_up: high << u16::BITS | second as u32, size }
    }

    /// For such an entry.
    #[inline(always)]
    pub fn to_mac(self) -> Mac {
        let time = self.looked_up & TIME;
        Mac([(self.slot << HIGH_BITS | time >> u16::BITS) as u16, time as u16, self.size])
    }

    /// Whether the flow's route is known now, for a packet of `size` bytes.
    #[inline(always)]
    pub fn is_fresh(self, size: u32, now: u32) -> bool {
        // No packet has a size of 0; no mark is for any size.
        size.wrapping_sub(1) < self.size as u32 && now.wrapping_sub(self.looked_up) & TIME < FRESH
    }

    /// Whether the slot already had the next hop when the FIB named it, if it has had the same one since `since`; for a fresh mark. Another
    /// one may have had it earlier in that jiffy.
    ///
    /// The age of a fresh mark is known, so that the whole time is compared: a next hop keeps its slot for months.
    #[inline(always)]
    pub fn is_after(self, since: u32, now: u32) -> bool {
        let age = now.wrapping_sub(self.looked_up) & TIME;
        // Another CPU's `since` may be later than `now`, by a jiffy.
        now.wrapping_sub(since).wrapping_add(FRESH) > age + FRESH
    }
}

/// Whether no fresh mark refers to a slot whose next hop the FIB last named at `looked_up`.
#[inline(always)]
pub fn is_unused(looked_up: u32, now: u32) -> bool {
    now.wrapping_sub(looked_up) >= 2 * FRESH
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{V4, layout::next_hop::NextHop};

    const MARK: RouteMark = RouteMark { slot: 1_023, looked_up: 0x12_3456, size: 1_500 };

    #[test]
    fn marks_survive_their_entry() {
        for mark in [
            MARK,
            RouteMark { slot: 0, ..MARK },
            RouteMark { looked_up: TIME, size: u16::MAX, ..MARK },
            RouteMark { looked_up: 1 << u16::BITS, ..MARK },
        ] {
            assert_eq!(RouteMark::from_mac(mark.to_mac()), mark);
        }
        let late = RouteMark { looked_up: 0xffd2_3456, ..MARK };
        assert_eq!(RouteMark::from_mac(late.to_mac()), MARK, "of the time only the last bits count");
        assert!((0..10_000u32).all(|addr| NextHop::<V4>::slot(&addr, 3) <= MARK.slot));
    }

    #[test]
    fn marks_are_for_a_moment_and_for_packets_of_that_size() {
        let now = MARK.looked_up;
        assert!(MARK.is_fresh(1_500, now) && MARK.is_fresh(40, now + FRESH - 1));
        assert!(!MARK.is_fresh(1_501, now) && !MARK.is_fresh(40, now + FRESH) && !MARK.is_fresh(40, now - 1));
        let none = RouteMark::from_mac(Mac::NONE);
        assert!((0..FRESH).all(|now| !none.is_fresh(20, now) && !none.is_fresh(0, now)));
        // The time has more bits than a mark.
        assert!(MARK.is_fresh(40, now | 0xffc0_0000));
        let last = RouteMark { looked_up: TIME, ..MARK };
        assert!(last.is_fresh(40, TIME + 1));
    }

    #[test]
    fn a_slot_that_got_another_next_hop_since_does_not_count() {
        for looked_up in [MARK.looked_up, MARK.looked_up | 0xffc0_0000, 5, u32::MAX] {
            let mark = RouteMark { looked_up, ..MARK };
            for age in [0, 1, FRESH - 1] {
                let now = looked_up.wrapping_add(age);
                for before in [
                    1,
                    2,
                    1 << (TIME_BITS - 1),
                    1 << TIME_BITS,
                    3 << TIME_BITS,
                    1 << 31,
                    u32::MAX - 3 * FRESH,
                ] {
                    assert!(mark.is_after(looked_up.wrapping_sub(before), now), "{looked_up} {age} {before}");
                }
                for after in [0, 1, age, age + 1] {
                    assert!(!mark.is_after(looked_up.wrapping_add(after), now), "{looked_up} {age} {after}");
                }
            }
        }
    }

    #[test]
    fn a_slot_is_unused_when_no_mark_is_fresh() {
        assert!(!is_unused(7, 7) && !is_unused(7, 7 + FRESH) && is_unused(7, 7 + 2 * FRESH));
        assert!(is_unused(u32::MAX, 2 * FRESH));
    }
}
