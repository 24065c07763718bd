//! Room in the backends array: contiguous slices.

use std::collections::{BTreeMap, BTreeSet};

/// Contiguous slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Slice {
    /// The first slot.
    pub(super) base: u32,
    /// The number of slots; 0 for the empty slice.
    pub(super) len: u32,
}

impl Slice {
    pub(super) const EMPTY: Self = Self { base: 0, len: 0 };
}

/// The smallest room that fits; freed neighbours merge. Costs the logarithm of how many pieces are free.
#[derive(Debug, Default)]
pub(super) struct Slices {
    /// Start -> length of free room.
    free: BTreeMap<u32, u32>,
    /// The same: length and start.
    by_length: BTreeSet<(u32, u32)>,
    used: u32,
    capacity: u32,
}

impl Slices {
    /// Room for `capacity` slots, of which the slices in `used` (distinct) are taken.
    pub(super) fn new(capacity: u32, used: impl Iterator<Item = Slice>) -> Self {
        let mut used: Vec<Slice> = used.filter(|slice| slice.len > 0).collect();
        used.sort_unstable_by_key(|slice| slice.base);
        let mut slices = Self { capacity, ..Self::default() };
        let mut start = 0;
        for Slice { base, len } in used {
            if base > start {
                slices.insert(start, base - start);
            }
            start = start.max(base + len);
            slices.used += len;
        }
        if capacity > start {
            slices.insert(start, capacity - start);
        }
        slices
    }

    fn insert(&mut self, base: u32, len: u32) {
        self.free.insert(base, len);
        self.by_length.insert((len, base));
    }

    fn remove(&mut self, base: u32, len: u32) {
        self.free.remove(&base);
        self.by_length.remove(&(len, base));
    }

    /// Takes `len` slots; `None` if no gap is that large.
    pub(super) fn take(&mut self, len: u32) -> Option<Slice> {
        if len == 0 {
            return Some(Slice::EMPTY);
        }
        let (room, base) = *self.by_length.range((len, 0)..).next()?;
        self.remove(base, room);
        if room > len {
            self.insert(base + len, room - len);
        }
        self.used += len;
        Some(Slice { base, len })
    }

    /// Gives a slice back that no reader uses any more.
    pub(super) fn give_back(&mut self, slice: Slice) {
        let Slice { mut base, mut len } = slice;
        if len == 0 {
            return;
        }
        self.used -= len;
        if let Some((&before, &room)) = self.free.range(..base).next_back()
            && before + room == base
        {
            self.remove(before, room);
            base = before;
            len += room;
        }
        if let Some(&room) = self.free.get(&(base + len)) {
            self.remove(base + len, room);
            len += room;
        }
        self.insert(base, len);
    }

    /// There is room for so many now, if that is more than before.
    pub(super) fn grow(&mut self, capacity: u32) {
        if let Some(len) = capacity.checked_sub(self.capacity).filter(|len| *len > 0) {
            let base = self.capacity;
            self.capacity = capacity;
            self.used += len;
            self.give_back(Slice { base, len });
        }
    }

    /// How many slots are taken.
    pub(super) fn used(&self) -> u32 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// After any sequence of takes and returns: slices never overlap, and all room comes back.
        #[test]
        fn slices_never_overlap(steps in proptest::collection::vec((any::<bool>(), 0u32..20), 1..200)) {
            let mut slices = Slices::new(256, std::iter::empty());
            let mut taken: Vec<Slice> = Vec::new();
            for (take, n) in steps {
                if take {
                    if let Some(slice) = slices.take(n) {
                        prop_assert_eq!(slice.len, n);
                        prop_assert!(slice.base + slice.len <= 256);
                        for other in &taken {
                            let apart = slice.base + slice.len <= other.base || other.base + other.len <= slice.base;
                            prop_assert!(apart || n == 0 || other.len == 0, "{:?} {:?}", slice, other);
                        }
                        taken.push(slice);
                    }
                } else if !taken.is_empty() {
                    slices.give_back(taken.swap_remove(n as usize % taken.len()));
                }
            }
            for slice in taken.drain(..) {
                slices.give_back(slice);
            }
            prop_assert_eq!(slices.take(256), Some(Slice { base: 0, len: 256 }));
        }
    }

    #[test]
    fn slices_of_an_earlier_agent_stay_taken() {
        let used = [Slice { base: 4, len: 2 }, Slice { base: 0, len: 1 }];
        let mut slices = Slices::new(8, used.into_iter());
        assert_eq!(slices.used(), 3);
        assert_eq!(slices.take(3), Some(Slice { base: 1, len: 3 }));
        assert_eq!(slices.take(3), None);
        assert_eq!(slices.take(2), Some(Slice { base: 6, len: 2 }));
    }

    #[test]
    fn new_room_joins_free_room() {
        let mut slices = Slices::new(8, std::iter::once(Slice { base: 0, len: 5 }));
        assert_eq!(slices.take(6), None);
        slices.grow(16);
        assert_eq!((slices.used(), slices.take(11)), (5, Some(Slice { base: 5, len: 11 })));
        slices.grow(8);
        assert_eq!(slices.take(1), None);
    }
}
