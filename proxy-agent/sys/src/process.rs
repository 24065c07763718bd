//! Processes and what is running.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use crate::descriptor;

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

/// Makes all threads allocate from one heap (`M_ARENA_MAX`). glibc gives each thread another one, and what one thread freed is of no use to
/// others. Threads that exist already keep theirs.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer, and may come from any thread at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives what was freed back to the kernel, where glibc keeps it.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointer, and may come from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
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
