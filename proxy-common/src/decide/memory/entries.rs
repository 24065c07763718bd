//! References to entries.

use core::{
    cell::{Cell, RefCell},
    ops::Deref,
};
use std::rc::Rc;

use crate::decide::tables::{AffinityHandle, FlowHandle};
use crate::{
    Family,
    layout::{
        affinity::Affinity,
        flow::{Flow, FlowKey, FlowState, Mac},
    },
};

use super::FlowEntries;

/// A flow entry: a copy from the time of the look-up, and the cell to write to.
#[derive(Clone, Debug)]
pub struct MemoryFlow<F: Family> {
    seen: Flow<F>,
    entry: Rc<Cell<Flow<F>>>,
}

pub(super) fn found<F: Family>(entries: &RefCell<FlowEntries<F>>, key: &FlowKey<F>) -> Option<MemoryFlow<F>> {
    entries.borrow().get(key).map(|entry| MemoryFlow { seen: entry.get(), entry: Rc::clone(entry) })
}

impl<F: Family> MemoryFlow<F> {
    fn change(&self, change: impl FnOnce(&mut Flow<F>)) {
        let mut flow = self.entry.get();
        change(&mut flow);
        self.entry.set(flow);
    }
}

impl<F: Family> Deref for MemoryFlow<F> {
    type Target = Flow<F>;

    fn deref(&self) -> &Flow<F> {
        &self.seen
    }
}

impl<F: Family> FlowHandle<F> for MemoryFlow<F> {
    fn touch(&self, now: u32) {
        self.change(|flow| flow.last_seen = now);
    }

    fn set_state(&self, state: FlowState) {
        self.change(|flow| flow.state = state as u8);
    }

    fn set_mac(&self, mac: Mac) {
        self.change(|flow| flow.mac = mac);
    }

    fn set_isn(&self, isn: u32) {
        self.change(|flow| flow.isn = isn);
    }

    fn set_acknowledged(&self, acknowledged: u32) {
        self.change(|flow| flow.acknowledged = acknowledged);
    }

    fn set_timestamp(&self, timestamp: u32) {
        self.change(|flow| flow.timestamp = timestamp);
    }
}

/// An affinity entry: a copy from the time of the look-up, and the cell to write to.
#[derive(Clone, Debug)]
pub struct MemoryAffinity<F: Family> {
    pub(super) seen: Affinity<F>,
    pub(super) entry: Rc<Cell<Affinity<F>>>,
}

impl<F: Family> Deref for MemoryAffinity<F> {
    type Target = Affinity<F>;

    fn deref(&self) -> &Affinity<F> {
        &self.seen
    }
}

impl<F: Family> AffinityHandle<F> for MemoryAffinity<F> {
    fn touch(&self, now: u32) {
        self.entry.set(Affinity { last_used: now, ..self.entry.get() });
    }
}
