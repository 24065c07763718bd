//! The reply filter: fingerprints of the sources of flows' replies; see `proxy_common::layout::reply_filter`.

use proxy_common::layout::reply_filter::{CacheLine, EPOCH, Fingerprint, LINE};

use crate::maps::REPLY_FILTER;

/// Does the filter contain it?
#[inline(always)]
pub(crate) fn contains(fingerprint: Fingerprint) -> bool {
    let Some(line) = REPLY_FILTER.get_ptr(fingerprint.line) else { return true };
    let [first, second] = fingerprint.bytes;
    // SAFETY: the kernel gave the pointer, and both are bytes of the line.
    unsafe { byte(line, first).read_volatile() != 0 && byte(line, second).read_volatile() != 0 }
}

/// Inserts a fingerprint.
#[inline(always)]
pub(crate) fn insert(fingerprint: Fingerprint) {
    let Fingerprint { line, bytes: [first, second] } = fingerprint;
    insert_reply(line, first, second);
}

/// Writes the number of the epoch to these bytes of a line.
// A global function, which the verifier goes through once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_reply(line: u32, first: u32, second: u32) -> u32 {
    let (Some(epoch), Some(line)) = (REPLY_FILTER.get_ptr(EPOCH), REPLY_FILTER.get_ptr_mut(line)) else {
        return 0;
    };
    // SAFETY: the kernel gave the pointer.
    let epoch = match unsafe { byte(epoch, 0).read_volatile() } {
        0 => 1,
        epoch => epoch,
    };
    for at in [first, second] {
        // SAFETY: as above, masked; others store a number in the same byte at most.
        unsafe {
            let byte = byte(line, at & (LINE - 1)).cast_mut();
            // Not to take the line from other CPUs each time.
            if byte.read_volatile() != epoch {
                byte.write_volatile(epoch);
            }
        }
    }
    1
}

/// # Safety
/// It is within the line.
#[inline(always)]
unsafe fn byte(line: *const CacheLine, at: u32) -> *const u8 {
    line.cast::<u8>().wrapping_add(at as usize)
}
