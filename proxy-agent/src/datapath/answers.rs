//! The marks of where answers of flows come from, as the agent keeps them: `proxy_common::layout::answers` tells the rules.

use std::sync::atomic::Ordering;

use anyhow::Result;
use proxy_common::{
    Family,
    layout::{
        answers::{LINE, LINES, Line, Mark, ROUND, next_round, rounds_since},
        flow::{Edge, FlowKey},
        maps::table,
    },
};

use super::{array::MmapArray, maps, pins::Pins};

/// The map `answers`. The data path marks what it opens meanwhile.
pub(crate) struct Answers {
    map: MmapArray<Line>,
}

impl Answers {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// When there is none, or it is of another version.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self { map: maps::mmap::<table::Answers>(pins)? })
    }

    /// Begins a round, in which every flow is to be marked; returns its number.
    pub(crate) fn begin(&self) -> u8 {
        let begun = next_round(self.round());
        if let Some(round) = self.map.byte(ROUND, 0) {
            round.store(begun, Ordering::Release);
        }
        begun
    }

    /// Marks an entry's source, if that is what it is found by.
    pub(crate) fn mark<F: Family>(&self, key: &FlowKey<F>) {
        if key.edge == Edge::Forward as u8 {
            return;
        }
        let round = self.round();
        let Mark { line, bytes } = Mark::of_source(key);
        for byte in bytes.into_iter().filter_map(|at| self.map.byte(line, at)) {
            byte.store(round, Ordering::Release);
        }
    }

    /// Ends the round with this number, in which every flow was marked: what has none any more is cleared. What was marked in
    /// the round before stays, because a program may have read the number just before it was raised; and what was marked since,
    /// even if another agent has begun rounds meanwhile.
    pub(crate) fn end(&self, begun: u8) {
        let round = self.round();
        let is_old = |mark: u8| mark != 0 && rounds_since(mark, round) > rounds_since(begun, round) + 1;
        for line in 0..LINES {
            for byte in (0..LINE).filter_map(|at| self.map.byte(line, at)) {
                let mark = byte.load(Ordering::Relaxed);
                if is_old(mark) {
                    // Only if no program has marked it anew meanwhile.
                    let _ = byte.compare_exchange(mark, 0, Ordering::Release, Ordering::Relaxed);
                }
            }
        }
    }

    fn round(&self) -> u8 {
        self.map.byte(ROUND, 0).map_or(1, |round| round.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
impl Answers {
    /// Marks that no program sees.
    pub(crate) fn anonymous() -> Self {
        Self { map: MmapArray::anonymous(proxy_common::layout::answers::ELEMENTS) }
    }

    /// Are answers found that are looked up with this key?
    pub(crate) fn hold<F: Family>(&self, key: &FlowKey<F>) -> bool {
        let Mark { line, bytes } = Mark::of_source(key);
        let is_marked = |at| self.map.byte(line, at).is_some_and(|byte| byte.load(Ordering::Relaxed) != 0);
        bytes.into_iter().all(is_marked)
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{V4, layout::flow::Tuple};

    use super::*;

    fn key(backend: u32, edge: Edge) -> FlowKey<V4> {
        FlowKey::new(Tuple { src: backend, dst: 1, sport: 2, dport: 3 }, 6, edge)
    }

    #[test]
    fn a_mark_stays_while_its_flow_is_met_in_each_round() {
        let answers = Answers::anonymous();
        let (lives, over) = (key(1, Edge::ReverseEgress), key(2, Edge::ReverseEgress));
        let begun = answers.begin();
        answers.mark(&lives);
        answers.mark(&over);
        answers.end(begun);
        // More often than there are numbers.
        for round in 0..600 {
            let begun = answers.begin();
            answers.mark(&lives);
            answers.end(begun);
            assert!(answers.hold(&lives), "round {round}");
            assert_eq!(answers.hold(&over), round == 0, "round {round}");
        }
    }

    #[test]
    fn a_round_that_was_broken_off_clears_nothing() {
        let answers = Answers::anonymous();
        let key = key(1, Edge::ReverseEgress);
        answers.begin();
        answers.mark(&key);
        answers.begin();
        answers.begin();
        assert!(answers.hold(&key));
    }

    #[test]
    fn another_agent_s_rounds_clear_nothing_of_this_one_s() {
        let answers = Answers::anonymous();
        let key = key(1, Edge::ReverseEgress);
        let begun = answers.begin();
        answers.mark(&key);
        // Started and ended again and again.
        for _ in 0..20 {
            answers.begin();
        }
        answers.end(begun);
        assert!(answers.hold(&key));
    }

    #[test]
    fn entries_for_answers_are_marked() {
        for (edge, expected) in
            [(Edge::Forward, false), (Edge::ReverseEgress, true), (Edge::ReverseIngress, true)]
        {
            let answers = Answers::anonymous();
            answers.begin();
            answers.mark(&key(1, edge));
            assert_eq!(answers.hold(&key(1, edge)), expected, "{edge:?}");
        }
    }
}
