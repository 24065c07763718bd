//! Arrays, maps of prefixes and socket storage: aya's types behind this crate's, so that its other modules call no method of
//! aya.

use std::{io, os::fd::AsRawFd};

use aya::{
    Pod,
    maps::{self, Map, MapData, MapError, lpm_trie::Key},
    pin::PinError,
};

/// An array, read and written by system calls.
pub struct Array<V: Pod>(maps::Array<MapData, V>);

impl<V: Pod> Array<V> {
    pub(super) fn new(map: MapData) -> Result<Self, MapError> {
        Ok(Self(Map::Array(map).try_into()?))
    }

    /// An element; `None` beyond the end.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, index: u32) -> io::Result<Option<V>> {
        found(self.0.get(&index, 0))
    }

    /// An element that the map must have.
    ///
    /// # Errors
    /// The kernel's, and beyond the end.
    pub fn element(&self, index: u32) -> io::Result<V> {
        self.get(index)?.ok_or_else(|| {
            let text = format!("no element {index} in an array of {}", self.0.len());
            io::Error::new(io::ErrorKind::NotFound, text)
        })
    }

    /// Writes an element, as a program would.
    ///
    /// # Errors
    /// The kernel's, and beyond the end.
    pub fn set(&mut self, index: u32, value: V) -> io::Result<()> {
        self.0.set(index, value, 0).map_err(into_io)
    }
}

/// A prefix: how many bits count, and the bits.
pub(super) type Prefix<K> = (u32, K);

/// A map of prefixes; the longest one that fits is found.
pub struct Trie<K, V>(maps::lpm_trie::LpmTrie<MapData, K, V>);

impl<K: Pod, V: Pod> Trie<K, V> {
    pub(super) fn new(map: MapData) -> Result<Self, MapError> {
        Ok(Self(Map::LpmTrie(map).try_into()?))
    }

    /// The value of the longest prefix that fits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, (bits, data): Prefix<K>) -> io::Result<Option<V>> {
        found(self.0.get(&Key::new(bits, data), 0))
    }

    /// All entries.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> io::Result<Vec<(Prefix<K>, V)>> {
        let entry = |(key, value): (Key<K>, V)| ((key.prefix_len(), key.data()), value);
        self.0.iter().map(|result| result.map(entry).map_err(into_io)).collect()
    }

    pub(super) fn insert(&mut self, (bits, data): Prefix<K>, value: V) -> io::Result<()> {
        self.0.insert(&Key::new(bits, data), value, 0).map_err(into_io)
    }

    /// Removes a prefix, if it is in the map.
    pub(super) fn remove(&mut self, (bits, data): Prefix<K>) -> io::Result<()> {
        found(self.0.remove(&Key::new(bits, data))).map(drop)
    }
}

/// What sockets keep, each for itself.
pub struct SocketStorage<V: Pod>(maps::SkStorage<MapData, V>);

impl<V: Pod> SocketStorage<V> {
    pub(super) fn new(map: MapData) -> Result<Self, MapError> {
        Ok(Self(Map::SkStorage(map).try_into()?))
    }

    /// What a socket keeps; `None` if nothing.
    ///
    /// # Errors
    /// The kernel's, as for descriptors that are no sockets.
    pub fn get(&self, socket: &impl AsRawFd) -> io::Result<Option<V>> {
        found(self.0.get(socket, 0))
    }

    /// Has a socket keep this, as a program would. For tests.
    ///
    /// # Errors
    /// The kernel's.
    pub fn insert(&mut self, socket: &impl AsRawFd, value: V) -> io::Result<()> {
        self.0.insert(socket, value, 0).map_err(into_io)
    }
}

/// `None` where the map has no such entry.
fn found<T>(result: Result<T, MapError>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound | MapError::OutOfBounds { .. }) => Ok(None),
        Err(error) if os_error(&error).is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT)) => {
            Ok(None)
        }
        Err(error) => Err(into_io(error)),
    }
}

/// The kernel's error, if it is one.
pub(super) fn os_error(error: &MapError) -> Option<&io::Error> {
    match error {
        MapError::IoError(error) | MapError::CreateError { io_error: error, .. } => Some(error),
        MapError::SyscallError(error) | MapError::PinError { error: PinError::SyscallError(error), .. } => {
            Some(&error.io_error)
        }
        _ => None,
    }
}

fn into_io(error: MapError) -> io::Error {
    match error {
        MapError::IoError(error) => error,
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    }
}
