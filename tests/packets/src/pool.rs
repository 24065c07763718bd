//! Loaded objects that tests use one after the other: most of the time of a test would be the verifier's, above all on an
//! emulated processor.

use std::{
    collections::HashMap,
    iter,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData, MapInfo, MapType},
};

use proxy_common::layout::by_use::{CURRENT, PREVIOUS};
use proxy_sys::bpf::map::{delete_element, set_inner};

use super::sys;

/// A loaded object.
pub(super) struct Object {
    pub(super) ebpf: Ebpf,
    /// What programs use of the maps that grow by use.
    pub(super) by_use: HashMap<&'static str, Map>,
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

    /// Has programs insert into new maps; the others are being replaced from now on.
    pub(super) fn enlarge_maps(&mut self) -> Result<()> {
        for (name, map) in &mut self.by_use {
            let Map::LruHashMap(current) = &*map else { bail!("`{name}` is no LRU map") };
            let info = current.info()?;
            let (key, value) = (info.key_size() as usize, info.value_size() as usize);
            let larger = sys::create_map(sys::MapKind::LruHash, key, value, info.max_entries())?;
            let slots = slots(&self.ebpf, name)?;
            set_inner(slots, PREVIOUS, current.fd().as_fd())?;
            set_inner(slots, CURRENT, larger.as_fd())?;
            *map = Map::LruHashMap(MapData::from_fd(larger)?);
        }
        Ok(())
    }

    fn empty_all(&self) -> Result<()> {
        for name in self.by_use.keys() {
            delete_element(slots(&self.ebpf, name)?, PREVIOUS)?;
        }
        let by_use = self.by_use.iter().map(|(name, map)| (*name, map));
        for (name, map) in self.ebpf.maps().chain(by_use) {
            empty(map).with_context(|| format!("map `{name}` of the test before"))?;
        }
        Ok(())
    }
}

/// The array with a map that grows by use.
pub(super) fn slots<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    match ebpf.map(name) {
        Some(Map::ArrayOfMaps(slots)) => Ok(slots.fd().as_fd()),
        _ => bail!("`{name}` is no array of maps"),
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
