//! The filter that says "surely no VIP": bits, and how many frontends want each.

use std::{collections::HashMap, sync::atomic::Ordering};

use proxy_common::layout::filter::{self, ELEMENTS};

use super::array::MmapArray;

/// Counts per bit, so that a bit is cleared when its last frontend goes.
pub(super) struct VipFilter {
    map: MmapArray<u64>,
    counts: HashMap<u32, u32>,
}

impl VipFilter {
    /// A filter over what an earlier agent left: its bits stay set until [`Self::drop_strangers`].
    pub(super) fn new(map: MmapArray<u64>) -> Self {
        Self { map, counts: HashMap::new() }
    }

    /// One more frontend wants the bit.
    pub(super) fn add(&mut self, bit: u32) {
        *self.counts.entry(bit).or_insert(0) += 1;
        let (element, bit) = filter::position(bit);
        if let Some(word) = self.map.word(element) {
            word.fetch_or(1 << bit, Ordering::Release);
        }
    }

    /// One frontend less wants the bit.
    pub(super) fn remove(&mut self, bit: u32) {
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

    /// Clears bits that nobody added: an earlier agent's.
    pub(super) fn drop_strangers(&mut self) {
        let mut wanted: HashMap<u32, u64> = HashMap::new();
        for bit in self.counts.keys() {
            let (element, bit) = filter::position(*bit);
            *wanted.entry(element).or_insert(0) |= 1 << bit;
        }
        for element in 0..ELEMENTS {
            if let Some(word) = self.map.word(element) {
                let keep = wanted.get(&element).copied().unwrap_or(0);
                if word.load(Ordering::Relaxed) & !keep != 0 {
                    word.fetch_and(keep, Ordering::Release);
                }
            }
        }
    }
}
