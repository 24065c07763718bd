//! The marks of where answers of flows come from; `proxy_common::layout::answers` tells how they come and go.

use proxy_common::{
    Family,
    layout::{
        answers::{Line, Mark, ROUND},
        flow::{Edge, FlowKey},
    },
};

use crate::maps::ANSWERS;

/// Is this mark set?
#[inline(always)]
pub(crate) fn holds(mark: Mark) -> bool {
    let Some(line) = ANSWERS.get_ptr(mark.line) else { return true };
    let [first, second] = mark.bytes;
    // SAFETY: the kernel gave the pointer, and both are bytes of the line.
    unsafe { byte(line, first).read_volatile() != 0 && byte(line, second).read_volatile() != 0 }
}

/// Marks the source of a flow entry that is about to be inserted, if that is what it is found by.
#[inline(always)]
pub(crate) fn announce<F: Family>(key: &FlowKey<F>) {
    if key.edge != Edge::ReverseEgress as u8 {
        return;
    }
    let mark = Mark::of_source(key);
    let (Some(round), Some(line)) = (ANSWERS.get_ptr(ROUND), ANSWERS.get_ptr_mut(mark.line)) else { return };
    // SAFETY: the kernel gave the pointer.
    let round = match unsafe { byte(round, 0).read_volatile() } {
        0 => 1,
        round => round,
    };
    for at in mark.bytes {
        // SAFETY: as above; others store their own number in the same byte at most.
        unsafe {
            let byte = byte(line, at).cast_mut();
            // Not to take the line from other CPUs each time.
            if byte.read_volatile() != round {
                byte.write_volatile(round);
            }
        }
    }
}

/// # Safety
/// It is within the line.
#[inline(always)]
unsafe fn byte(line: *const Line, at: u32) -> *const u8 {
    line.cast::<u8>().wrapping_add(at as usize)
}
