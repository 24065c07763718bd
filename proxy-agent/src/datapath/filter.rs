//! The filter of non-service destinations: a clear bit means "surely no VIP"; counts how many frontends set each bit.

use std::{
    collections::{HashMap, VecDeque},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use proxy_common::layout::filter::{self, ELEMENTS, Fingerprint};

use super::array::MmapArray;

/// How long a bit outlives its frontend: established TCP connections live on, and without the bit their packets would not
/// be looked up any more.
const GRACE: Duration = Duration::from_secs(3600);

/// Counts per bit, so that a bit is cleared when its last frontend is long gone.
pub(super) struct VipFilter {
    map: MmapArray<u64>,
    counts: HashMap<u32, u32>,
    /// Bits that were released since the last look at the time.
    released: Vec<u32>,
    /// Bits that wait for their time, the longest-waiting first.
    expiring: VecDeque<(Instant, u32)>,
}

impl VipFilter {
    /// A filter over an earlier agent's bits: they stay set until [`Self::release_unowned`].
    pub(super) fn new(map: MmapArray<u64>) -> Self {
        Self { map, counts: HashMap::new(), released: Vec::new(), expiring: VecDeque::new() }
    }

    /// One more frontend has the fingerprint.
    pub(super) fn add(&mut self, fingerprint: Fingerprint) {
        for bit in fingerprint.bits() {
            *self.counts.entry(bit).or_insert(0) += 1;
        }
        if let Some(word) = self.map.word(fingerprint.element) {
            word.fetch_or(fingerprint.mask, Ordering::Release);
        }
    }

    /// A frontend with the fingerprint is gone: its bits stay for an hour.
    pub(super) fn release(&mut self, fingerprint: Fingerprint) {
        self.released.extend(fingerprint.bits());
    }

    /// The same for bits of an earlier agent.
    pub(super) fn release_unowned(&mut self) {
        for element in 0..ELEMENTS {
            let mut word = self.map.word(element).map_or(0, |word| word.load(Ordering::Relaxed));
            while word != 0 {
                let bit = element * u64::BITS + word.trailing_zeros();
                word &= word - 1;
                self.counts.entry(bit).or_insert_with(|| {
                    self.released.push(bit);
                    1
                });
            }
        }
    }

    /// Clears bits that were released an hour ago and that no frontend has.
    pub(super) fn expire(&mut self, now: Instant) {
        self.expiring.extend(self.released.drain(..).map(|bit| (now, bit)));
        while let Some((since, bit)) = self.expiring.front().copied()
            && now.saturating_duration_since(since) >= GRACE
        {
            self.expiring.pop_front();
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

    /// Whether its bits are set.
    #[cfg(test)]
    pub(super) fn holds(&self, fingerprint: Fingerprint) -> bool {
        self.map.word(fingerprint.element).is_some_and(|word| fingerprint.is_in(word.load(Ordering::Relaxed)))
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

    fn fingerprint(address: u32) -> Fingerprint {
        filter::of_address::<V4>(&address)
    }

    #[test]
    fn a_fingerprint_outlives_its_last_frontend_by_an_hour() {
        let fingerprint = fingerprint(7);
        let mut filter = VipFilter::new(MmapArray::anonymous(ELEMENTS));
        let start = Instant::now();
        filter.add(fingerprint);
        filter.add(fingerprint);
        filter.release(fingerprint);
        filter.expire(start);
        filter.expire(start + GRACE);
        assert!(filter.holds(fingerprint), "another frontend wants it");
        filter.release(fingerprint);
        filter.expire(start + GRACE);
        filter.expire(start + 2 * GRACE - Duration::from_secs(1));
        assert!(filter.holds(fingerprint));
        filter.add(fingerprint);
        filter.expire(start + 2 * GRACE);
        assert!(filter.holds(fingerprint), "it came back in time");
        filter.release(fingerprint);
        filter.expire(start + 2 * GRACE);
        filter.expire(start + 3 * GRACE);
        assert!(!filter.holds(fingerprint));
    }

    #[test]
    fn fingerprints_of_an_earlier_agent_expire_unless_they_are_wanted() {
        let mut before = VipFilter::new(MmapArray::anonymous(ELEMENTS));
        before.add(fingerprint(1));
        before.add(fingerprint(2));
        let mut filter = VipFilter::new(before.into_map());
        filter.add(fingerprint(2));
        filter.release_unowned();
        let start = Instant::now();
        filter.expire(start);
        assert!(filter.holds(fingerprint(1)) && filter.holds(fingerprint(2)));
        filter.expire(start + GRACE);
        assert!(!filter.holds(fingerprint(1)) && filter.holds(fingerprint(2)));
    }
}
