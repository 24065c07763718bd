//! Hash maps and tries as the agent writes them: the kernel's, or in memory for tests.

use std::io;

use anyhow::Result;
use aya::{
    Pod,
    maps::{MapError, lpm_trie},
};
use proxy_common::layout::source_range::SourceRange;

use super::{
    maps::{MapFamily, Trie},
    raw_hash::RawHash,
    room::{Full, Part},
};

/// A map that only the agent writes.
pub(super) trait Table<K, V>: Send {
    /// All that is in it.
    fn entries(&self) -> Result<Vec<(K, V)>>;
    /// Puts an entry in, or replaces the one with that key.
    fn insert(&mut self, key: K, value: V) -> Result<()>;
    /// Takes an entry out. One that is not there is gone already.
    fn remove(&mut self, key: &K) -> Result<()>;
    /// How many entries it has room for, if that is known.
    fn capacity(&self) -> Option<u32> {
        None
    }
}

/// The error of a write: [`Full`] if the map is full.
pub(super) fn write_error(error: anyhow::Error, part: Part) -> anyhow::Error {
    let causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    // Hash maps return E2BIG, tries ENOSPC.
    let is_full =
        causes.into_iter().any(|cause| matches!(cause.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)));
    if is_full { Full(part).into() } else { error }
}

impl<K: Pod, V: Pod> Table<K, V> for RawHash<K, V> {
    fn entries(&self) -> Result<Vec<(K, V)>> {
        Ok(RawHash::entries(self)?)
    }

    fn insert(&mut self, key: K, value: V) -> Result<()> {
        Ok(RawHash::insert(self, &key, &value)?)
    }

    fn remove(&mut self, key: &K) -> Result<()> {
        RawHash::remove(self, key)?;
        Ok(())
    }

    fn capacity(&self) -> Option<u32> {
        Some(self.max_entries())
    }
}

/// A prefix of clients: how many of the bits of the second count, the service port's included.
pub(super) type SourcePrefix<F> = (u32, SourceRange<F>);

impl<F: MapFamily> Table<SourcePrefix<F>, u32> for Trie<SourceRange<F>, u32> {
    fn entries(&self) -> Result<Vec<(SourcePrefix<F>, u32)>> {
        let entry = |entry: Result<(lpm_trie::Key<SourceRange<F>>, u32), MapError>| {
            let (key, value) = entry?;
            Ok(((key.prefix_len(), key.data()), value))
        };
        self.iter().map(entry).collect()
    }

    fn insert(&mut self, (bits, source): SourcePrefix<F>, value: u32) -> Result<()> {
        Ok(Trie::insert(self, &lpm_trie::Key::new(bits, source), value, 0)?)
    }

    fn remove(&mut self, (bits, source): &SourcePrefix<F>) -> Result<()> {
        removed(Trie::remove(self, &lpm_trie::Key::new(*bits, *source)))
    }
}

fn removed(result: Result<(), MapError>) -> Result<()> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => Ok(result?),
    }
}

/// Shared, so that a test can inspect a map that it passed on.
#[cfg(test)]
pub(super) mod memory {
    use std::{
        collections::HashMap,
        hash::Hash,
        io,
        sync::{Arc, Mutex},
    };

    use anyhow::{Result, ensure};

    use super::Table;

    /// A table in memory; clones are the same table.
    pub(in crate::datapath) struct Memory<K, V>(Arc<Mutex<Contents<K, V>>>);

    struct Contents<K, V> {
        entries: HashMap<K, V>,
        writes: usize,
        room: usize,
        refuses: bool,
    }

    impl<K, V> Memory<K, V> {
        /// With room for so many entries.
        pub(in crate::datapath) fn new(room: usize) -> Self {
            Self(Arc::new(Mutex::new(Contents { entries: HashMap::new(), writes: 0, room, refuses: false })))
        }

        /// How often it was written.
        pub(in crate::datapath) fn writes(&self) -> usize {
            self.0.lock().unwrap().writes
        }

        /// Makes the map refuse changes and removals of existing entries, or accept them again.
        pub(in crate::datapath) fn set_refuses(&self, refuses: bool) {
            self.0.lock().unwrap().refuses = refuses;
        }

        /// Makes room, or takes it away.
        pub(in crate::datapath) fn set_room(&self, room: usize) {
            self.0.lock().unwrap().room = room;
        }
    }

    impl<K, V> Clone for Memory<K, V> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    impl<K: Copy + Eq + Hash + Send, V: Copy + Send> Memory<K, V> {
        /// The value at a key.
        pub(in crate::datapath) fn get(&self, key: &K) -> Option<V> {
            self.0.lock().unwrap().entries.get(key).copied()
        }
    }

    impl<K: Copy + Eq + Hash + Send, V: Copy + Send> Table<K, V> for Memory<K, V> {
        fn entries(&self) -> Result<Vec<(K, V)>> {
            Ok(self.0.lock().unwrap().entries.iter().map(|(key, value)| (*key, *value)).collect())
        }

        fn insert(&mut self, key: K, value: V) -> Result<()> {
            let mut contents = self.0.lock().unwrap();
            if contents.entries.len() >= contents.room && !contents.entries.contains_key(&key) {
                return Err(io::Error::from_raw_os_error(libc::E2BIG).into());
            }
            ensure!(!contents.refuses || !contents.entries.contains_key(&key), "refused");
            contents.writes += 1;
            contents.entries.insert(key, value);
            Ok(())
        }

        fn remove(&mut self, key: &K) -> Result<()> {
            let mut contents = self.0.lock().unwrap();
            ensure!(!contents.refuses, "refused");
            contents.writes += 1;
            contents.entries.remove(key);
            Ok(())
        }

        fn capacity(&self) -> Option<u32> {
            u32::try_from(self.0.lock().unwrap().room).ok()
        }
    }
}
