//! The reply filter: fingerprints of the sources of flows' replies; see `proxy_common::layout::reply_filter`.

use proxy_common::{
    layout::reply_filter::{self, CacheLine, EPOCH, Fingerprint, LINE},
    shared::Shared,
};

use crate::maps::REPLY_FILTER;

/// A byte of the map, which the agent and programs on other CPUs may write at any time.
///
/// Invariant: the byte is within an element to which the kernel gave a pointer.
struct MapByte(*mut u8);

impl MapByte {
    /// Byte `at` of a line, modulo its length.
    #[inline(always)]
    fn of(line: *mut CacheLine, at: u32) -> Self {
        Self(line.cast::<u8>().wrapping_add((at & (LINE - 1)) as usize))
    }
}

impl Shared<u8> for MapByte {
    #[inline(always)]
    fn load(&self) -> u8 {
        // SAFETY: the invariant.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn store(&self, value: u8) {
        // SAFETY: the invariant.
        unsafe { self.0.write_volatile(value) };
    }
}

/// Whether the filter contains the fingerprint.
#[inline(always)]
pub(crate) fn contains(fingerprint: Fingerprint) -> bool {
    let Some(line) = REPLY_FILTER.get_ptr_mut(fingerprint.line) else { return true };
    reply_filter::contains(fingerprint.bytes.map(|at| MapByte::of(line, at)))
}

/// Inserts a fingerprint.
#[inline(always)]
pub(crate) fn insert(fingerprint: Fingerprint) {
    let Fingerprint { line, bytes: [first, second] } = fingerprint;
    insert_reply(line, first, second);
}

/// Writes the number of the epoch to these bytes of a line.
// A global function, which the verifier checks once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_reply(line: u32, first: u32, second: u32) -> u32 {
    let (Some(epoch), Some(line)) = (REPLY_FILTER.get_ptr_mut(EPOCH), REPLY_FILTER.get_ptr_mut(line)) else {
        return 0;
    };
    reply_filter::insert(&MapByte::of(epoch, 0), [first, second].map(|at| MapByte::of(line, at)));
    1
}
