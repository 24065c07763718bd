//! What packet programs have no room for on the stack.

pub(crate) use proxy_common::decide::Scratch;

use crate::maps::FamilyMaps;

/// This CPU's.
#[inline(always)]
pub(crate) fn scratch<F: FamilyMaps>() -> Option<&'static mut Scratch<F>> {
    // SAFETY: programs run with bottom halves off, so that one at a time uses it; any bytes there were written as this type,
    // or are zero, which is the first variant of each enum.
    F::scratch().map(|scratch| unsafe { &mut *scratch })
}
