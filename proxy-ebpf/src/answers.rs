//! The marks of where answers of flows come from; `proxy_common::layout::answers` tells how they come and go.

use proxy_common::layout::answers::{LINE, Line, Mark, ROUND};

use crate::maps::ANSWERS;

/// Is this mark set?
#[inline(always)]
pub(crate) fn holds(mark: Mark) -> bool {
    let Some(line) = ANSWERS.get_ptr(mark.line) else { return true };
    let [first, second] = mark.bytes;
    // SAFETY: the kernel gave the pointer, and both are bytes of the line.
    unsafe { byte(line, first).read_volatile() != 0 && byte(line, second).read_volatile() != 0 }
}

/// Sets a mark.
#[inline(always)]
pub(crate) fn announce(mark: Mark) {
    let Mark { line, bytes: [first, second] } = mark;
    announce_answers(line, first, second);
}

/// Marks these bytes of a line with the number of the round.
// A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn announce_answers(line: u32, first: u32, second: u32) -> u32 {
    let (Some(round), Some(line)) = (ANSWERS.get_ptr(ROUND), ANSWERS.get_ptr_mut(line)) else { return 0 };
    // SAFETY: the kernel gave the pointer.
    let round = match unsafe { byte(round, 0).read_volatile() } {
        0 => 1,
        round => round,
    };
    for at in [first, second] {
        // SAFETY: as above, masked; others store a number in the same byte at most.
        unsafe {
            let byte = byte(line, at & (LINE - 1)).cast_mut();
            // Not to take the line from other CPUs each time.
            if byte.read_volatile() != round {
                byte.write_volatile(round);
            }
        }
    }
    1
}

/// # Safety
/// It is within the line.
#[inline(always)]
unsafe fn byte(line: *const Line, at: u32) -> *const u8 {
    line.cast::<u8>().wrapping_add(at as usize)
}
