//! Memory of the packet programs for data that the stack has no room for.

use proxy_common::{
    Family,
    decide::{Completion, Translation, Verdict},
    layout::flow::{FlowDraft, FlowKey},
    packet::Dissected,
};

use crate::maps::FamilyMaps;

/// A packet and its verdict.
#[repr(C)]
pub(crate) struct Scratch<F: Family> {
    /// Key of the flow entry that the program looks up.
    pub(crate) key: FlowKey<F>,
    /// The packet.
    pub(crate) dissected: Dissected<F>,
    /// For a packet of the slow path: whether the parse is complete.
    pub(crate) completion: Completion,
    /// The verdict.
    pub(crate) verdict: Verdict,
    /// Its parameters.
    pub(crate) out: Translation<F>,
}

/// This CPU's draft of a flow's entries, with undefined content.
#[inline(always)]
pub(crate) fn draft<F: FamilyMaps>() -> Option<&'static mut FlowDraft<F>> {
    // SAFETY: as below. No function uses it while a function that it called does.
    F::draft().map(|draft| unsafe { &mut *draft })
}

/// This CPU's scratch memory.
#[inline(always)]
pub(crate) fn scratch<F: FamilyMaps>() -> Option<&'static mut Scratch<F>> {
    // SAFETY: programs run with bottom halves off, so that only one at a time uses it. All its bytes were
    // written as this type, or are zero, which is the first variant of each enum.
    F::scratch().map(|scratch| unsafe { &mut *scratch })
}
