//! Memory that is no longer needed.

/// Gives what was freed back to the kernel. glibc keeps it unless it is at the end of the heap: after the programs are
/// loaded (the kernel's types were read for that) and after the first lists that is more than what is in use.
///
/// Takes milliseconds; not for the thread that applies changes, once it has begun.
pub(crate) fn give_back() {
    proxy_sys::process::trim_heap();
}
