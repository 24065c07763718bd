//! What packet programs have no room for on the stack.

use proxy_common::{
    Family,
    decide::{Completion, Translation, Verdict},
    layout::flow::{FlowDraft, FlowKey},
    packet::Dissected,
};

use crate::maps::FamilyMaps;

/// What a packet is and what is to become of it.
#[repr(C)]
pub(crate) struct Scratch<F: Family> {
    /// Of the flow entry that is looked for.
    pub(crate) key: FlowKey<F>,
    /// The packet.
    pub(crate) dissected: Dissected<F>,
    /// Of a packet that was taken apart: what is known of it.
    pub(crate) completion: Completion,
    /// What was decided.
    pub(crate) verdict: Verdict,
    /// And how.
    pub(crate) out: Translation<F>,
}

/// This CPU's draft of a flow's entries, with anything in it.
#[inline(always)]
pub(crate) fn draft<F: FamilyMaps>() -> Option<&'static mut FlowDraft<F>> {
    // SAFETY: as below. No function uses it while another one that it called does.
    F::draft().map(|draft| unsafe { &mut *draft })
}

/// This CPU's.
#[inline(always)]
pub(crate) fn scratch<F: FamilyMaps>() -> Option<&'static mut Scratch<F>> {
    // SAFETY: programs run with bottom halves off, so that one at a time uses it; any bytes there were written as this type,
    // or are zero, which is the first variant of each enum.
    F::scratch().map(|scratch| unsafe { &mut *scratch })
}
