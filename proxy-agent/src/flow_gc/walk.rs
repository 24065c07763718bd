//! Over the maps of one family, slice by slice.

use std::{collections::BTreeMap, marker::PhantomData};

use anyhow::Result;
use proxy_common::{
    layout::{
        config::Timeouts,
        flow::{Flow, FlowDraft, FlowKey, FlowState, flags},
    },
    packet::PROTOCOL_UDP,
};

use crate::{
    clock::Clock,
    datapath::{
        flows::{FlowTable, STATES, state_name},
        maps::MapFamily,
        reply_filter::ReplyFilter,
    },
};

/// Flows by the names of their states, as [`state_name`] has them.
pub(super) type Census = BTreeMap<&'static str, i64>;

/// The result of a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Flows that were removed.
    pub(super) expired: u64,
    /// At the end of the last map: all flows that are left.
    pub(super) census: Option<Census>,
}

/// A walk over a family's maps, one after the other, again and again. A flow has both entries in one of them.
pub(super) struct Walk<F, T> {
    /// In the order in which a flow is moved: one that is moved meanwhile is met in one of them.
    tables: Vec<T>,
    /// Which one is walked over.
    current: usize,
    timeouts: Timeouts,
    at: Option<u32>,
    census: Census,
    seen: usize,
    /// Entries seen in the last round; before the first, as many as there may be.
    last_seen: usize,
    family: PhantomData<F>,
}

impl<F: MapFamily, T: FlowTable<F>> Walk<F, T> {
    pub(super) fn new(tables: impl IntoIterator<Item = T>, timeouts: Timeouts) -> Self {
        let tables: Vec<T> = tables.into_iter().collect();
        let last_seen = tables.iter().map(|table| table.capacity() as usize).sum();
        Self {
            tables,
            current: 0,
            timeouts,
            at: None,
            census: Census::new(),
            seen: 0,
            last_seen,
            family: PhantomData,
        }
    }

    /// About how many steps a round will take, at least one.
    pub(super) fn expected(&self, slice: usize) -> u32 {
        u32::try_from(self.last_seen.div_ceil(slice)).unwrap_or(u32::MAX).max(1)
    }

    /// Begins again with the larger maps, if some were replaced; false if none was.
    pub(super) fn follow(&mut self) -> Result<bool> {
        let mut has_moved = false;
        for table in &mut self.tables {
            has_moved |= table.follow()?;
        }
        if has_moved {
            (self.current, self.at, self.seen) = (0, None, 0);
            self.census.clear();
        }
        Ok(has_moved)
    }

    /// Whether all flows are in these maps.
    pub(super) fn is_whole(&self) -> Result<bool> {
        self.tables.iter().try_fold(true, |whole, table| Ok(whole && table.is_whole()?))
    }

    /// Whether the next slice is the first one.
    pub(super) fn is_at_start(&self) -> bool {
        self.at.is_none() && self.current == 0
    }

    /// Reads the next slice, removes expired flows, and inserts the backends of the rest into the reply filter.
    pub(super) fn step(&mut self, clock: Clock, slice: usize, reply_filter: &ReplyFilter) -> Result<Step> {
        let mut step = Step::default();
        let (entries, next) = match self.tables.get_mut(self.current) {
            Some(table) => table.slice(self.at, slice)?,
            None => (Vec::new(), None),
        };
        self.at = next;
        self.seen += entries.len();
        for (key, flow) in &entries {
            reply_filter.insert(key);
            let fate =
                if self.is_over(key, flow, clock) { self.expire(key, flow, clock)? } else { Fate::Lives };
            match fate {
                Fate::Removed => step.expired += 1,
                Fate::Lives => self.count(key, flow),
                Fate::Gone => {}
            }
        }
        if next.is_none() {
            self.current += 1;
        }
        if self.current >= self.tables.len() {
            self.current = 0;
            self.last_seen = std::mem::take(&mut self.seen);
            self.census.retain(|_, count| *count > 0);
            step.census = Some(std::mem::take(&mut self.census));
        }
        Ok(step)
    }

    /// Counts a flow by its forward entry. `SynReceived` is noted in the reverse entry alone, but for datagrams.
    fn count(&mut self, key: &FlowKey<F>, flow: &Flow<F>) {
        let [new, ..] = STATES;
        let is_reply = flow.flags & flags::REVERSE != 0;
        let is_noted_here = flow.state == FlowState::SynReceived as u8 && key.protocol != PROTOCOL_UDP;
        if is_reply && !is_noted_here {
            return;
        }
        *self.census.entry(state_name(key.protocol, flow.state)).or_default() += 1;
        if is_reply {
            *self.census.entry(new).or_default() -= 1;
        }
    }

    fn is_over(&self, key: &FlowKey<F>, flow: &Flow<F>, clock: Clock) -> bool {
        clock.seconds_since(flow.last_seen) >= self.timeouts.of(key.protocol, flow.state, flow.flags).into()
    }

    /// Removes a flow's two entries if they are still expired, each read once more just before. That for requests goes first:
    /// one for replies alone is found by the next packet of either side, and makes the other again.
    fn expire(&mut self, key: &FlowKey<F>, flow: &Flow<F>, clock: Clock) -> Result<Fate> {
        let mut draft = FlowDraft::default();
        draft.begin(key, flow);
        draft.make_opposite();
        let mut entries = [(draft.key, draft.flow), (draft.opposite_key, draft.opposite)];
        if flow.flags & flags::REVERSE != 0 {
            entries.reverse();
        }
        // If one of them lives, the flow does: it was touched a moment ago, and its opposite entry will be.
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
            if let Some(table) = self.tables.get_mut(self.current) {
                table.remove(&entry.0)?;
            }
            fate = Fate::Removed;
        }
        Ok(fate)
    }

    /// The current entry; `None` if it is gone, or belongs to another flow by now.
    fn look_again(&self, (key, flow): &(FlowKey<F>, Flow<F>)) -> Result<Option<Flow<F>>> {
        let Some(table) = self.tables.get(self.current) else { return Ok(None) };
        Ok(table.get(key)?.filter(|now| now.tuple.same(&flow.tuple)))
    }
}

/// The result for a flow that seemed to have expired.
enum Fate {
    /// It was, and is gone.
    Removed,
    /// It was gone before: with its other entry, or the map forgot it.
    Gone,
    /// It is not.
    Lives,
}
