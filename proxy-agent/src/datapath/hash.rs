//! Hash maps, by system calls that aya does not have: many entries at once.
#![expect(unsafe_code, reason = "bpf(2) reads and writes keys and values by pointers")]

use std::{
    io,
    marker::PhantomData,
    mem,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use aya::Pod;
#[cfg(test)]
use proxy_sys::bpf::map::{self, MapKind};
use proxy_sys::bpf::{
    self, Attr, Command,
    map::{MapInfo, lookup_batch, map_info},
    present,
};

/// A hash map, LRU or not. Reading an entry from user space does not mark it as used, so that an LRU map does not evict it
/// any later.
///
/// Invariant: keys and values of the map have the sizes of these types.
pub struct Hash<K, V> {
    map: OwnedFd,
    /// A map that this one is replacing: its entries count as this map's.
    previous: Option<Box<Self>>,
    max_entries: u32,
    id: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    /// Opens a pinned map.
    ///
    /// # Errors
    /// The kernel's, and when keys or values have other sizes.
    pub(super) fn open_pinned(at: &Path) -> io::Result<Self> {
        Self::new(bpf::open_pinned(at)?)
    }

    fn new(map: OwnedFd) -> io::Result<Self> {
        let MapInfo { id, key_size, value_size, max_entries } = map_info(map.as_fd())?;
        if (key_size as usize, value_size as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the map has another layout"));
        }
        Ok(Self { map, previous: None, max_entries, id, types: PhantomData })
    }

    /// A map, and perhaps one that it is replacing.
    ///
    /// # Errors
    /// The same as for [`Self::open_pinned`].
    pub(super) fn replacing(map: OwnedFd, previous: Option<OwnedFd>) -> io::Result<Self> {
        let previous = previous.map(Self::new).transpose()?.map(Box::new);
        Ok(Self { previous, ..Self::new(map)? })
    }

    /// The kernel's id of the map.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// How many entries it has room for.
    pub(super) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Looks an entry up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: all zero is a value of a plain type.
        let mut value: V = unsafe { mem::zeroed() };
        let mut attr =
            Attr::new().fd(0, self.map.as_fd()).u64(8, &raw const *key as u64).u64(16, &raw mut value as u64);
        // SAFETY: key and value have the map's sizes.
        let result = unsafe { attr.call(Command::MapLookupElem) };
        match (present(result)?, &self.previous) {
            (Some(_), _) => Ok(Some(value)),
            (None, Some(previous)) => previous.get(key),
            (None, None) => Ok(None),
        }
    }

    /// Removes an entry; returns whether it existed.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attr = Attr::new().fd(0, self.map.as_fd()).u64(8, &raw const *key as u64);
        // SAFETY: the key has the map's size.
        Ok(present(unsafe { attr.call(Command::MapDeleteElem) })?.is_some())
    }

    /// Looks up as many entries as there is room for, from a position on; the beginning is `None`. Returns how many there
    /// are and the position behind them: `None` at the end. Works for arrays, too.
    ///
    /// # Errors
    /// `ENOSPC` when there is not room for all entries of one bucket.
    pub(super) fn batch(
        &self,
        from: Option<u32>,
        keys: &mut [K],
        values: &mut [V],
    ) -> io::Result<(usize, Option<u32>)> {
        let count = keys.len().min(values.len());
        // SAFETY: keys and values have the map's sizes, and the buffers hold as many as are requested.
        unsafe {
            lookup_batch(self.map.as_fd(), from, keys.as_mut_ptr().cast(), values.as_mut_ptr().cast(), count)
        }
    }

    /// All entries, a few thousand with each system call. Each bucket is read once, so this ends however much the map
    /// changes meanwhile. An entry that is being moved to a larger map may come twice, its current value last.
    ///
    /// # Errors
    /// The kernel's.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut room = 4096;
        // SAFETY: all zero is a value of a plain type.
        let (key, value): (K, V) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut entries = match &self.previous {
            Some(previous) => previous.entries()?,
            None => Vec::new(),
        };
        let mut from = None;
        loop {
            keys.resize(room, key);
            values.resize(room, value);
            let (count, next) = match self.batch(from, &mut keys, &mut values) {
                // A bucket with so many entries is hardly possible.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    continue;
                }
                result => result?,
            };
            entries.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
            match next {
                Some(next) => from = Some(next),
                None => return Ok(entries),
            }
        }
    }

    /// All keys.
    ///
    /// # Errors
    /// The kernel's.
    pub fn keys(&self) -> io::Result<Vec<K>> {
        Ok(self.entries()?.into_iter().map(|(key, _)| key).collect())
    }

    /// A new LRU map, not shared with any program.
    #[cfg(test)]
    pub(super) fn new_lru(max_entries: u32) -> io::Result<Self> {
        Self::new(map::create(MapKind::LruHash, size_of::<K>(), size_of::<V>(), max_entries)?)
    }

    /// Puts an entry in, or replaces the one with that key.
    ///
    /// # Errors
    /// The kernel's: `E2BIG` without room.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = Attr::new()
            .fd(0, self.map.as_fd())
            .u64(8, &raw const *key as u64)
            .u64(16, &raw const *value as u64);
        // SAFETY: key and value have the map's sizes.
        unsafe { attr.call(Command::MapUpdateElem) }.map(drop)
    }
}

/// Reads a plain type from the beginning of bytes; `None` if there are too few.
pub(super) fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: so many bytes are there, and any are a value of a plain type.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
