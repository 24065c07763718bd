//! Hash maps whose keys and values are bytes: to copy entries without their types.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::{
    Attr, Command,
    map::{MapInfo, lookup_batch, map_info},
    present,
};

/// A hash map, LRU or not.
///
/// Invariant: `info` is that of `map`.
#[derive(Debug)]
pub struct ByteMap {
    map: OwnedFd,
    info: MapInfo,
}

/// Entries of a map, one after the other.
#[derive(Debug, Default)]
pub struct Batch {
    keys: Vec<u8>,
    values: Vec<u8>,
    room: usize,
}

impl ByteMap {
    /// Takes a map.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        Ok(Self { info: map_info(map.as_fd())?, map })
    }

    /// The kernel's information.
    pub fn info(&self) -> MapInfo {
        self.info
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Reads some entries from a position on; the beginning is `None`. Returns their number and the position behind them: `None` at the end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(&self, from: Option<u32>, batch: &mut Batch) -> io::Result<(usize, Option<u32>)> {
        loop {
            match self.try_read(from, batch) {
                // A bucket with so many entries is hardly possible.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => batch.room *= 2,
                result => return result,
            }
        }
    }

    fn try_read(&self, from: Option<u32>, batch: &mut Batch) -> io::Result<(usize, Option<u32>)> {
        batch.room = batch.room.max(1024);
        batch.keys.resize(batch.room * self.key_size(), 0);
        batch.values.resize(batch.room * self.value_size(), 0);
        let (keys, values) = (batch.keys.as_mut_ptr(), batch.values.as_mut_ptr());
        // SAFETY: the buffers have room for so many keys and values of this map.
        unsafe { lookup_batch(self.map.as_fd(), from, keys, values, batch.room) }
    }

    /// The keys of a batch with so many entries.
    pub fn keys<'a>(&self, batch: &'a Batch, count: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        batch.keys.chunks_exact(self.key_size()).take(count)
    }

    /// Looks an entry up; false if there is none.
    ///
    /// # Errors
    /// The kernel's, and for a key of another size.
    pub fn get(&self, key: &[u8], value: &mut Vec<u8>) -> io::Result<bool> {
        self.check(key.len(), self.key_size())?;
        value.resize(self.value_size(), 0);
        let mut attr = self.attr(key).u64(16, value.as_mut_ptr() as u64);
        // SAFETY: key and value have the map's sizes.
        Ok(present(unsafe { attr.call(Command::MapLookupElem) })?.is_some())
    }

    /// Inserts an entry; false if the map has one with this key.
    ///
    /// # Errors
    /// The kernel's, and for a key or value of another size.
    pub fn insert_new(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        const BPF_NOEXIST: u64 = 1;
        self.check(key.len(), self.key_size())?;
        self.check(value.len(), self.value_size())?;
        let mut attr = self.attr(key).u64(16, value.as_ptr() as u64).u64(24, BPF_NOEXIST);
        // SAFETY: key and value have the map's sizes.
        match unsafe { attr.call(Command::MapUpdateElem) } {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes an entry, if there is one.
    ///
    /// # Errors
    /// The kernel's, and for a key of another size.
    pub fn remove(&self, key: &[u8]) -> io::Result<()> {
        self.check(key.len(), self.key_size())?;
        // SAFETY: the key has the map's size.
        present(unsafe { self.attr(key).call(Command::MapDeleteElem) }).map(drop)
    }

    fn attr(&self, key: &[u8]) -> Attr {
        Attr::new().fd(0, self.map.as_fd()).u64(8, key.as_ptr() as u64)
    }

    fn check(&self, size: usize, expected: usize) -> io::Result<()> {
        if size == expected { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn key_size(&self) -> usize {
        self.info.key_size as usize
    }

    fn value_size(&self) -> usize {
        self.info.value_size as usize
    }
}
