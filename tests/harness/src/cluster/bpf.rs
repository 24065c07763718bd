//! The few bpf(2) calls that tests need for their own programs.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

pub(super) use proxy_sys::bpf::program::{SCHED_CLS, XDP};
use proxy_sys::bpf::{
    Attr, Command, link,
    map::{self, MapKind},
    open_pinned,
    program::{self, Load},
};

/// Makes an array of one counter.
pub(super) fn create_counter() -> io::Result<OwnedFd> {
    map::create(MapKind::Array, size_of::<u32>(), size_of::<u64>(), 1)
}

/// Reads it.
pub(super) fn read_counter(map: &OwnedFd) -> io::Result<u64> {
    let (key, mut value) = (0_u32, 0_u64);
    let mut attr =
        Attr::new().fd(0, map.as_fd()).u64(8, &raw const key as u64).u64(16, &raw mut value as u64);
    // SAFETY: key and value are of the sizes that the counter was made with.
    unsafe { attr.call(Command::MapLookupElem) }?;
    Ok(value)
}

/// Loads a program; 15 bytes of its name are kept.
pub(super) fn load(kind: u32, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    program::load(Load { kind, name, instructions, ..Load::default() }).map_err(|(error, _)| error)
}

/// Gives a program a name in the BPF file system.
pub(super) fn pin(program: &OwnedFd, path: &Path) -> io::Result<()> {
    proxy_sys::bpf::pin(program.as_fd(), path)
}

/// Attaches a program to an interface for as long as the link is open.
pub(super) fn attach(program: &OwnedFd, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    link::create(program.as_fd(), ifindex, attach_type, flags)
}

/// Detaches the program of a pinned link; the pin stays.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    link::detach(open_pinned(pin)?.as_fd())
}
