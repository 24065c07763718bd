//! Ids of services and backends, with generations.

use std::collections::VecDeque;

use proxy_common::layout::id::Id;

/// Hands ids out. Indices that were never used come first, then the longest-freed one, with its next generation: an id stored in
/// flows, sockets and affinity entries must not name a later owner, and only 255 generations exist.
#[derive(Debug)]
pub(super) struct Ids {
    /// Indices from here on were never used by this agent.
    fresh: u32,
    capacity: u32,
    /// Generation of fresh indices. Differs from start to start, so that an earlier agent's ids in flows are
    /// unlikely to name a new owner.
    first_generation: u8,
    free: VecDeque<Id>,
}

impl Ids {
    /// Ids with indices below `capacity`, of which those in `used` are taken.
    pub(super) fn new(capacity: u32, first_generation: u8, used: impl Iterator<Item = Id>) -> Self {
        let first_generation = first_generation.max(1);
        let capacity = capacity.min(Id::INDICES);
        let mut taken: Vec<u32> = used.map(Id::index).collect();
        taken.sort_unstable();
        taken.dedup();
        let fresh = taken.last().map_or(0, |last| last + 1);
        let mut taken = taken.into_iter().peekable();
        let free = (0..fresh)
            .filter(|index| taken.next_if_eq(index).is_none())
            .map(|index| Id::new(index, first_generation.wrapping_sub(1)))
            .collect();
        Self { fresh, capacity, first_generation, free }
    }

    /// A new id; `None` when all are taken.
    pub(super) fn take(&mut self) -> Option<Id> {
        if self.fresh >= self.capacity {
            return self.free.pop_front().map(Id::next);
        }
        let id = Id::new(self.fresh, self.first_generation);
        self.fresh += 1;
        Some(id)
    }

    /// There is room for so many now, if that is more than before.
    pub(super) fn grow(&mut self, capacity: u32) {
        self.capacity = self.capacity.max(capacity.min(Id::INDICES));
    }

    /// Gives an id back that no reader uses any more.
    pub(super) fn give_back(&mut self, id: Id) {
        self.free.push_back(id);
    }

    /// How many are taken.
    pub(super) fn used(&self) -> u32 {
        self.fresh - self.free.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_is_given_twice() {
        let mut ids = Ids::new(2, 200, std::iter::empty());
        let (a, b) = (ids.take().unwrap(), ids.take().unwrap());
        assert_ne!(a.index(), b.index());
        assert_eq!(ids.take(), None);
        ids.give_back(a);
        let again = ids.take().unwrap();
        assert_eq!(again.index(), a.index());
        assert_ne!(again, a);
        assert_eq!(ids.used(), 2);
    }

    #[test]
    fn ids_of_an_earlier_agent_stay_taken() {
        let mut ids = Ids::new(8, 7, [Id::new(1, 3), Id::new(3, 9)].into_iter());
        let taken: Vec<u32> = std::iter::from_fn(|| ids.take()).map(Id::index).collect();
        assert_eq!(taken, [4, 5, 6, 7, 0, 2]);
    }

    #[test]
    fn an_id_does_not_come_back_while_others_are_free() {
        let mut ids = Ids::new(1024, 7, std::iter::empty());
        let first = ids.take().unwrap();
        ids.give_back(first);
        // An endpoint that is replaced again and again.
        for _ in 0..3 * 255 {
            let id = ids.take().unwrap();
            assert_ne!(id.index(), first.index());
            ids.give_back(id);
        }
        ids.grow(2048);
        assert!((0..1024).map(|_| ids.take().unwrap()).all(|id| id != first));
    }

    #[test]
    fn generations_are_never_zero() {
        for first in [0, 1, 255] {
            let mut ids = Ids::new(4, first, [Id::new(2, 1)].into_iter());
            while let Some(id) = ids.take() {
                assert_ne!(id.generation(), 0, "first generation {first}, {id:?}");
            }
        }
    }
}
