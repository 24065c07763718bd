//! Loaded objects that tests use one after the other: most of the time of a test would be the verifier's, above all on an
//! emulated processor.

use std::{
    collections::HashMap,
    iter,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Map, MapData, MapInfo, MapType},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{by_use::ByUse, sys};

/// A loaded object.
pub(super) struct Object {
    pub(super) ebpf: Ebpf,
    pub(super) by_use: ByUse,
}

impl Object {
    /// A map's entries.
    pub(super) fn map(&self, name: &str) -> Option<&Map> {
        self.by_use.get(name).or_else(|| self.ebpf.map(name))
    }

    /// The same, to be written.
    pub(super) fn map_mut(&mut self, name: &str) -> Option<&mut Map> {
        self.by_use.get_mut(name).or_else(|| self.ebpf.map_mut(name))
    }

    fn empty_all(&self) -> Result<()> {
        self.by_use.forget_previous(&self.ebpf)?;
        for (name, map) in self.ebpf.maps().chain(self.by_use.all()) {
            empty(map).with_context(|| format!("map `{name}` of the test before"))?;
        }
        Ok(())
    }
}

/// An object whose user is alone with it.
pub(super) type Loaded = Arc<Mutex<Object>>;

/// Elements of no more bytes are many, and set to zero all at once.
const SMALL: usize = 64;

/// By how they were loaded. Objects that only the pool has are free.
static POOL: Mutex<Option<HashMap<String, Vec<Loaded>>>> = Mutex::new(None);

/// An object that was loaded this way, with nothing in its maps; loads one if none is free.
pub(super) fn lease(how: &str, load: impl FnOnce() -> Result<Object>) -> Result<Loaded> {
    if let Some(free) = free(how) {
        free.lock().unwrap_or_else(PoisonError::into_inner).empty_all()?;
        return Ok(free);
    }
    // Each object has about eighty descriptors, and 1,024 are the usual limit.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let loaded = Arc::new(Mutex::new(load()?));
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    pool.get_or_insert_default().entry(how.to_owned()).or_default().push(loaded.clone());
    Ok(loaded)
}

fn free(how: &str) -> Option<Loaded> {
    let pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    // The pool is locked, so no other thread can clone it: one that only the pool has stays free.
    pool.as_ref()?.get(how)?.iter().find(|loaded| Arc::strong_count(loaded) == 1).cloned()
}

/// Empties a map, or sets all its elements to zero.
pub(super) fn empty(map: &Map) -> Result<()> {
    let data: &MapData = match map {
        Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuHashMap(data)
        | Map::PerCpuLruHashMap(data) => data,
        // Rings of events, which are not read here, and storage of sockets, which goes with them.
        _ => return Ok(()),
    };
    let (info, fd) = (data.info()?, data.fd().as_fd());
    match info.map_type()? {
        // Constants; they are frozen.
        MapType::Array if info.name_as_str().is_some_and(|name| name.starts_with('.')) => Ok(()),
        MapType::Array if (info.value_size() as usize) <= SMALL => {
            Ok(sys::zero_all(fd, info.max_entries(), info.value_size() as usize)?)
        }
        MapType::Array => zero(fd, &info, info.value_size() as usize),
        // Old kernels write one element of those at a time.
        MapType::PerCpuArray => {
            let size = info.value_size().next_multiple_of(8) as usize;
            zero(fd, &info, size * aya::util::nr_cpus().map_err(|(_, error)| error)?)
        }
        _ => {
            let size = info.key_size() as usize;
            let after = |key: &Vec<u8>| sys::next_key(fd, Some(key), size).transpose();
            let first = sys::next_key(fd, None, size)?;
            let keys: Vec<_> = iter::successors(first.map(Ok), |key| after(key.as_ref().ok()?))
                .collect::<Result<_, std::io::Error>>()?;
            Ok(keys.iter().try_for_each(|key| sys::delete(fd, key))?)
        }
    }
}

fn zero(fd: BorrowedFd<'_>, info: &MapInfo, size: usize) -> Result<()> {
    let value = vec![0; size];
    Ok((0..info.max_entries()).try_for_each(|index| sys::update(fd, index, &value))?)
}
