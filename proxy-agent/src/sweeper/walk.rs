//! Over one map, slice by slice.

use std::{collections::BTreeMap, marker::PhantomData};

use anyhow::Result;
use proxy_common::layout::{
    config::Timeouts,
    flow::{Flow, FlowKey, Pair, flags},
};

use crate::{
    clock::Clock,
    datapath::{
        answers::Answers,
        flows::{FlowTable, state_name},
        maps::MapFamily,
    },
};

/// Flows by the names of their states, as [`state_name`] has them.
pub(super) type Census = BTreeMap<&'static str, i64>;

/// What a step came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Flows that were removed.
    pub(super) expired: u64,
    /// At the end of the map: all flows that are left.
    pub(super) census: Option<Census>,
}

/// A walk over a map, again and again.
pub(super) struct Walk<F, T> {
    table: T,
    timeouts: Timeouts,
    at: Option<u32>,
    census: Census,
    seen: usize,
    /// Entries seen in the last round; before the first, as many as there may be.
    last_seen: usize,
    family: PhantomData<F>,
}

impl<F: MapFamily, T: FlowTable<F>> Walk<F, T> {
    pub(super) fn new(table: T, timeouts: Timeouts) -> Self {
        let last_seen = table.capacity() as usize;
        Self { table, timeouts, at: None, census: Census::new(), seen: 0, last_seen, family: PhantomData }
    }

    /// About how many steps a round will take, at least one.
    pub(super) fn expected(&self, slice: usize) -> u32 {
        u32::try_from(self.last_seen.div_ceil(slice)).unwrap_or(u32::MAX).max(1)
    }

    /// Is the next slice the first one?
    pub(super) fn is_at_start(&self) -> bool {
        self.at.is_none()
    }

    /// Looks at the next slice, removes what is over, and marks where answers of the rest come from.
    pub(super) fn step(&mut self, clock: Clock, slice: usize, answers: &Answers) -> Result<Step> {
        let (entries, next) = self.table.slice(self.at, slice)?;
        self.at = next;
        self.seen += entries.len();
        let mut step = Step::default();
        for (key, flow) in &entries {
            answers.mark(key);
            let fate =
                if self.is_over(key, flow, clock) { self.expire(key, flow, clock)? } else { Fate::Lives };
            match fate {
                Fate::Removed => step.expired += 1,
                Fate::Lives if flow.flags & flags::REVERSE == 0 => {
                    *self.census.entry(state_name(flow.state)).or_default() += 1;
                }
                Fate::Lives | Fate::Gone => {}
            }
        }
        if next.is_none() {
            self.last_seen = std::mem::take(&mut self.seen);
            step.census = Some(std::mem::take(&mut self.census));
        }
        Ok(step)
    }

    fn is_over(&self, key: &FlowKey<F>, flow: &Flow<F>, clock: Clock) -> bool {
        clock.seconds_since(flow.last_seen) >= self.timeouts.of(key.protocol, flow.state, flow.flags).into()
    }

    /// Removes a flow's two entries if they are over still, each looked at once more just before. That for requests goes first:
    /// one for answers alone is found by the next packet of either side, and makes the other again.
    fn expire(&mut self, key: &FlowKey<F>, flow: &Flow<F>, clock: Clock) -> Result<Fate> {
        let mut pair = Pair::default();
        pair.begin(key, flow);
        pair.make_twin();
        let mut entries = [(pair.key, pair.flow), (pair.twin_key, pair.twin)];
        if flow.flags & flags::REVERSE != 0 {
            entries.reverse();
        }
        // If one of them lives, the flow does: it was touched a moment ago, and its mirror will be.
        for entry in &entries {
            if self.look_again(entry)?.is_some_and(|now| !self.is_over(&entry.0, &now, clock)) {
                return Ok(Fate::Lives);
            }
        }
        let mut fate = Fate::Gone;
        for entry in &entries {
            let Some(now) = self.look_again(entry)? else { continue };
            if !self.is_over(&entry.0, &now, clock) {
                return Ok(Fate::Lives);
            }
            self.table.remove(&entry.0)?;
            fate = Fate::Removed;
        }
        Ok(fate)
    }

    /// An entry as it is now; `None` if it is gone, or another flow's by now.
    fn look_again(&self, (key, flow): &(FlowKey<F>, Flow<F>)) -> Result<Option<Flow<F>>> {
        Ok(self.table.get(key)?.filter(|now| now.tuple.same(&flow.tuple)))
    }
}

/// What became of a flow that seemed to be over.
enum Fate {
    /// It was, and is gone.
    Removed,
    /// It was gone before: with its other entry, or the map forgot it.
    Gone,
    /// It is not.
    Lives,
}
