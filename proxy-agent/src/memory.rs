//! Release of unused memory.

/// Returns freed memory to the kernel. glibc keeps it unless it is at the end of the heap: after the programs are
/// loaded (the kernel's types were read for that) and after the first lists, more is freed than in use.
///
/// Takes milliseconds; not for the thread that applies changes, once it has begun.
pub(crate) fn give_back() {
    proxy_sys::process::trim_heap();
}
