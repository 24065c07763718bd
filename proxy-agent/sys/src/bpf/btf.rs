//! Types of maps and programs: the BPF Type Format.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{Attr, Command};

/// Types of the key and the value of a map, by their ids in loaded types.
#[derive(Clone, Copy, Debug)]
pub struct MapTypes<'a> {
    /// What [`load`] returned.
    pub types: BorrowedFd<'a>,
    /// Of the key; 0: none.
    pub key: u32,
    /// Of the value; 0: none.
    pub value: u32,
}

/// Loads types.
///
/// # Errors
/// The kernel's.
pub fn load(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().u64(0, types.as_ptr() as u64).u32(16, types.len() as u32);
    // SAFETY: the types have the length that is given; the command returns a new descriptor.
    unsafe { attr.call_for_fd(Command::BtfLoad) }
}
