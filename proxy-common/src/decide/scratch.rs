//! What packet programs have no room for on the stack.

use super::{Completion, Translation, Verdict};
use crate::{Family, layout::flow::FlowKey, packet::Dissected};

/// What a packet is and what is to become of it. The programs have one per CPU; those that look on read the packet in it.
#[derive(Debug)]
#[repr(C)]
pub struct Scratch<F: Family> {
    /// Of the flow entry that is looked for.
    pub key: FlowKey<F>,
    /// The packet.
    pub dissected: Dissected<F>,
    /// Of a packet that was taken apart: what is known of it.
    pub completion: Completion,
    /// What was decided.
    pub verdict: Verdict,
    /// And how.
    pub out: Translation<F>,
}
