//! Flow and affinity entries, read and written where they are.

use core::ops::Deref;

use proxy_common::{
    Family,
    decide::{AffinityHandle, FlowHandle},
    layout::{
        affinity::Affinity,
        flow::{Flow, FlowState, Mac},
    },
};

/// An entry of a flow map.
pub(crate) struct FlowEntry<F: Family>(pub(super) *mut Flow<F>);

impl<F: Family> Deref for FlowEntry<F> {
    type Target = Flow<F>;

    #[inline(always)]
    fn deref(&self) -> &Flow<F> {
        // SAFETY: the kernel gave the pointer, and map memory outlives the program.
        unsafe { &*self.0 }
    }
}

impl<F: Family> FlowHandle<F> for FlowEntry<F> {
    #[inline(always)]
    fn touch(&self, now: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).last_seen = now };
    }

    #[inline(always)]
    fn set_state(&self, state: FlowState) {
        // SAFETY: as above.
        unsafe { (*self.0).state = state as u8 };
    }

    #[inline(always)]
    fn set_mac(&self, mac: Mac) {
        // SAFETY: as above.
        unsafe {
            (*self.0).mac.0[0] = mac.0[0];
            (*self.0).mac.0[1] = mac.0[1];
            (*self.0).mac.0[2] = mac.0[2];
        }
    }

    #[inline(always)]
    fn set_isn(&self, isn: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).isn = isn };
    }

    #[inline(always)]
    fn set_acknowledged(&self, acknowledged: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).acknowledged = acknowledged };
    }

    #[inline(always)]
    fn set_timestamp(&self, timestamp: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).timestamp = timestamp };
    }
}

/// An entry of an affinity map.
pub(crate) struct AffinityEntry<F: Family>(pub(super) *mut Affinity<F>);

impl<F: Family> Deref for AffinityEntry<F> {
    type Target = Affinity<F>;

    #[inline(always)]
    fn deref(&self) -> &Affinity<F> {
        // SAFETY: the kernel gave the pointer, and map memory outlives the program.
        unsafe { &*self.0 }
    }
}

impl<F: Family> AffinityHandle<F> for AffinityEntry<F> {
    #[inline(always)]
    fn touch(&self, now: u32) {
        // SAFETY: as above; one word.
        unsafe { (*self.0).last_used = now };
    }
}
