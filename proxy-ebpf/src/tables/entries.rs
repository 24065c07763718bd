//! Flow and affinity entries, read and written in the map.

use core::ops::Deref;

use proxy_common::{
    Family,
    decide::{AffinityHandle, FlowHandle},
    layout::{
        affinity::Affinity,
        flow::{Flow, FlowState, Mac},
    },
};

/// Writes a field of an entry.
macro_rules! put {
    ($entry:ident.$($field:tt)+) => {
        // SAFETY: the invariant.
        unsafe { (*$entry.0).$($field)+ }
    };
}

/// An entry of a flow map.
///
/// Invariant: the kernel gave the pointer; map memory outlives the program.
pub(crate) struct FlowEntry<F: Family>(pub(super) *mut Flow<F>);

impl<F: Family> Deref for FlowEntry<F> {
    type Target = Flow<F>;

    #[inline(always)]
    fn deref(&self) -> &Flow<F> {
        // SAFETY: the invariant.
        unsafe { &*self.0 }
    }
}

impl<F: Family> FlowEntry<F> {
    /// The flags that the entry has now.
    #[inline(always)]
    pub(super) fn current_flags(&self) -> u8 {
        // SAFETY: the invariant.
        unsafe { (&raw const (*self.0).flags).read_volatile() }
    }
}

impl<F: Family> FlowHandle<F> for FlowEntry<F> {
    #[inline(always)]
    fn touch(&self, now: u32) {
        put!(self.last_seen = now);
    }

    #[inline(always)]
    fn set_state(&self, state: FlowState) {
        put!(self.state = state as u8);
    }

    #[inline(always)]
    fn set_mac(&self, mac: Mac) {
        put!(self.mac.0[0] = mac.0[0]);
        put!(self.mac.0[1] = mac.0[1]);
        put!(self.mac.0[2] = mac.0[2]);
    }

    #[inline(always)]
    fn set_isn(&self, isn: u32) {
        put!(self.isn = isn);
    }

    #[inline(always)]
    fn set_acknowledged(&self, acknowledged: u32) {
        put!(self.acknowledged = acknowledged);
    }

    #[inline(always)]
    fn set_timestamp(&self, timestamp: u32) {
        put!(self.timestamp = timestamp);
    }
}

/// An entry of an affinity map.
///
/// Invariant: as above.
pub(crate) struct AffinityEntry<F: Family>(pub(super) *mut Affinity<F>);

impl<F: Family> Deref for AffinityEntry<F> {
    type Target = Affinity<F>;

    #[inline(always)]
    fn deref(&self) -> &Affinity<F> {
        // SAFETY: the invariant.
        unsafe { &*self.0 }
    }
}

impl<F: Family> AffinityHandle<F> for AffinityEntry<F> {
    #[inline(always)]
    fn touch(&self, now: u32) {
        put!(self.last_used = now);
    }
}
