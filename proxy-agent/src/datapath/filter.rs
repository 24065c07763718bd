//! The filter that says "surely no VIP": bits, and how many frontends want each.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use proxy_common::layout::filter::{self, ELEMENTS, Mark};

use super::array::MmapArray;

/// How long a bit outlives its frontend: established TCP connections live on, and without the bit their packets would not
/// be looked up any more.
const GRACE: Duration = Duration::from_secs(3600);

/// Counts per bit, so that a bit is cleared when its last frontend is long gone.
pub(super) struct VipFilter {
    map: MmapArray<u64>,
    counts: HashMap<u32, u32>,
    /// Bits that were given up since the last look at the time.
    given_up: Vec<u32>,
    /// Bits that wait for their time, the longest-waiting first.
    retired: VecDeque<(Instant, u32)>,
}

impl VipFilter {
    /// A filter over what an earlier agent left: its bits stay set until [`Self::give_up_strangers`].
    pub(super) fn new(map: MmapArray<u64>) -> Self {
        Self { map, counts: HashMap::new(), given_up: Vec::new(), retired: VecDeque::new() }
    }

    /// One more frontend wants the mark.
    pub(super) fn add(&mut self, mark: Mark) {
        for bit in mark.bits() {
            *self.counts.entry(bit).or_insert(0) += 1;
        }
        if let Some(word) = self.map.word(mark.element) {
            word.fetch_or(mark.mask, Ordering::Release);
        }
    }

    /// A frontend that wanted the mark is gone: it stays for an hour.
    pub(super) fn give_up(&mut self, mark: Mark) {
        self.given_up.extend(mark.bits());
    }

    /// The same for bits that nobody added: an earlier agent's.
    pub(super) fn give_up_strangers(&mut self) {
        for element in 0..ELEMENTS {
            let word = self.map.word(element).map_or(0, |word| word.load(Ordering::Relaxed));
            for bit in (0..u64::BITS).filter(|bit| word >> bit & 1 != 0) {
                let bit = element * u64::BITS + bit;
                self.counts.entry(bit).or_insert_with(|| {
                    self.given_up.push(bit);
                    1
                });
            }
        }
    }

    /// Clears bits that were given up an hour ago and that nobody wants any more.
    pub(super) fn retire(&mut self, now: Instant) {
        self.retired.extend(self.given_up.drain(..).map(|bit| (now, bit)));
        while let Some((since, bit)) = self.retired.front().copied()
            && now.saturating_duration_since(since) >= GRACE
        {
            self.retired.pop_front();
            self.remove(bit);
        }
    }

    fn remove(&mut self, bit: u32) {
        let Some(count) = self.counts.get_mut(&bit) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.counts.remove(&bit);
        let (element, bit) = filter::position(bit);
        if let Some(word) = self.map.word(element) {
            word.fetch_and(!(1 << bit), Ordering::Release);
        }
    }

    /// Is the mark there?
    #[cfg(test)]
    pub(super) fn holds(&self, mark: Mark) -> bool {
        self.map.word(mark.element).is_some_and(|word| mark.is_in(word.load(Ordering::Relaxed)))
    }

    /// The array, for the next agent.
    #[cfg(test)]
    pub(super) fn into_map(self) -> MmapArray<u64> {
        self.map
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::V4;

    use super::*;

    fn mark(address: u32) -> Mark {
        filter::of_address::<V4>(&address)
    }

    #[test]
    fn a_mark_outlives_its_last_frontend_by_an_hour() {
        let mark = mark(7);
        let mut filter = VipFilter::new(MmapArray::anonymous(ELEMENTS));
        let start = Instant::now();
        filter.add(mark);
        filter.add(mark);
        filter.give_up(mark);
        filter.retire(start);
        filter.retire(start + GRACE);
        assert!(filter.holds(mark), "another frontend wants it");
        filter.give_up(mark);
        filter.retire(start + GRACE);
        filter.retire(start + 2 * GRACE - Duration::from_secs(1));
        assert!(filter.holds(mark));
        filter.add(mark);
        filter.retire(start + 2 * GRACE);
        assert!(filter.holds(mark), "it came back in time");
        filter.give_up(mark);
        filter.retire(start + 2 * GRACE);
        filter.retire(start + 3 * GRACE);
        assert!(!filter.holds(mark));
    }

    #[test]
    fn marks_of_an_earlier_agent_retire_unless_they_are_wanted() {
        let mut before = VipFilter::new(MmapArray::anonymous(ELEMENTS));
        before.add(mark(1));
        before.add(mark(2));
        let mut filter = VipFilter::new(before.into_map());
        filter.add(mark(2));
        filter.give_up_strangers();
        let start = Instant::now();
        filter.retire(start);
        assert!(filter.holds(mark(1)) && filter.holds(mark(2)));
        filter.retire(start + GRACE);
        assert!(!filter.holds(mark(1)) && filter.holds(mark(2)));
    }
}
