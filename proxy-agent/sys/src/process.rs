//! Processes and what is running.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Waits until every program that was running has ended: one RCU grace period.
///
/// # Errors
/// `EINVAL` on kernels with `nohz_full`.
pub fn wait_for_readers() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A handle of a process (kernel 5.3).
///
/// # Errors
/// The kernel's.
pub fn open_process(id: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the call returns a new descriptor.
    unsafe { descriptor(libc::syscall(libc::SYS_pidfd_open, id, 0)) }
}

/// A copy of another process's descriptor (kernel 5.6).
///
/// # Errors
/// The kernel's.
pub fn take_descriptor(process: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    unsafe { descriptor(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0)) }
}

/// # Safety
/// The result of a call that returns a new descriptor.
unsafe fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
