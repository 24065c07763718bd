//! Raw system calls: bpf(2) in the forms that aya does not have, and a few others that no crate has.
//!
//! The agent's data path and the tests both stand on this, so that each command is spelt once. It knows nothing of the agent's maps and
//! programs.

pub mod bpf;
pub mod ethtool;
pub mod packet;
pub mod process;
pub mod socket;

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

/// # Safety
/// The result of a call that returns a new descriptor.
unsafe fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
