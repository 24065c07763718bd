//! The limit of locked memory, RLIMIT_MEMLOCK. Before Linux 5.11 maps and programs count as locked memory of their user, since then as memory
//! of the control group.

use aya::util::KernelVersion;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// The memory that maps and programs may take by the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockedMemory {
    /// This kernel does not count them.
    NotCounted,
    /// Everything.
    Unlimited,
    /// Up to this many bytes; this process may not raise the limit (CAP_SYS_RESOURCE).
    Limited(u64),
}

/// Raises the limit as far as this process may, where it counts.
pub(crate) fn raise() -> LockedMemory {
    if KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(5, 11, 0)) {
        return LockedMemory::NotCounted;
    }
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok() {
        return LockedMemory::Unlimited;
    }
    // The first is in effect, and may be raised to the second by anybody.
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or_default();
    let limit = if setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).is_ok() { hard } else { soft };
    if limit == RLIM_INFINITY { LockedMemory::Unlimited } else { LockedMemory::Limited(limit) }
}
