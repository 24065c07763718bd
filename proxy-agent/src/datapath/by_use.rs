//! Maps that grow while they are used; [`proxy_common::layout::by_use`] has the protocol with the programs.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::Result;
use proxy_common::layout::{
    by_use::{CURRENT, FIRST_PER_CPU, PREVIOUS},
    maps::{self, ByUse, Definition},
};
use proxy_sys::bpf::{
    bytes::{Batch, ByteMap},
    map::{NewMap, delete_element, inner, inner_id, map_info, set_inner},
    open_pinned,
};

use super::{
    denied::{Refused, explain_load},
    pins::Pins,
};

/// Entries of such a map at first, if it may have so many at most.
pub(super) fn first(size: ByUse, most: u32) -> u32 {
    let cpus = aya::util::online_cpus().map_or(1, |cpus| u32::try_from(cpus.len()).unwrap_or(u32::MAX));
    size.first.max(cpus.saturating_mul(FIRST_PER_CPU)).min(most)
}

/// A map that grows by use.
#[derive(Debug)]
pub(crate) struct ByUseMap {
    definition: &'static Definition,
    slots: OwnedFd,
}

impl ByUseMap {
    /// Opens a pinned one.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(pins: &Pins, definition: &'static Definition) -> io::Result<Self> {
        Ok(Self::new(definition, open_pinned(&pins.map(definition.name))?))
    }

    pub(super) fn new(definition: &'static Definition, slots: OwnedFd) -> Self {
        Self { definition, slots }
    }

    /// All that grow by use.
    pub(crate) fn definitions() -> impl Iterator<Item = &'static Definition> {
        maps::all().filter(|map| map.by_use().is_some())
    }

    /// The array.
    pub(super) fn into_slots(self) -> OwnedFd {
        self.slots
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.definition.name
    }

    /// Its definition.
    pub(crate) fn definition(&self) -> &'static Definition {
        self.definition
    }

    /// The map into which programs insert.
    ///
    /// # Errors
    /// The kernel's, and when there is none.
    pub(super) fn current(&self) -> io::Result<OwnedFd> {
        inner(self.slots.as_fd(), CURRENT)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no agent filled the map `{}`", self.name()))
        })
    }

    /// The map whose entries are being copied.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn previous(&self) -> io::Result<Option<OwnedFd>> {
        inner(self.slots.as_fd(), PREVIOUS)
    }

    /// The kernel's id of the map into which programs insert.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn current_id(&self) -> io::Result<Option<u32>> {
        inner_id(self.slots.as_fd(), CURRENT)
    }

    /// How many entries it has room for.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn capacity(&self) -> io::Result<u32> {
        Ok(map_info(self.current()?.as_fd())?.max_entries)
    }

    /// How many entries there are.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn count(&self) -> io::Result<u32> {
        let current = ByteMap::new(self.current()?)?;
        let (mut batch, mut from, mut count) = (Batch::default(), None, 0);
        loop {
            let (found, next) = current.read(from, &mut batch)?;
            count += u32::try_from(found).unwrap_or(u32::MAX);
            match next {
                Some(next) => from = Some(next),
                None => return Ok(count),
            }
        }
    }

    /// Makes the first map, or one in the place of a map that no program uses.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn begin(&self, entries: u32) -> io::Result<()> {
        set_inner(self.slots.as_fd(), CURRENT, self.make(entries)?.as_fd())
    }

    /// Puts a larger map in the place of the current one: with so many entries or, if the kernel has no memory for that, the least number.
    /// Returns how many. Entries are still looked up in the other map, until [`Self::settle`].
    ///
    /// # Errors
    /// The kernel's: then the map stays unchanged, or its entries are looked up twice.
    pub(crate) fn enlarge(&self, entries: u32, least: u32) -> Result<u32> {
        let refused = || Refused::request(format!("make a larger map `{}`", self.name()));
        let (entries, larger) = match self.make(entries) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => (least, self.make(least)),
            made => (entries, made),
        };
        let larger = larger.map_err(refused()).map_err(explain_load)?;
        // An agent that was killed may have left one.
        self.settle(&|| false)?;
        set_inner(self.slots.as_fd(), PREVIOUS, self.current()?.as_fd())?;
        set_inner(self.slots.as_fd(), CURRENT, larger.as_fd())?;
        Ok(entries)
    }

    /// Copies the entries of the previous map that the current one lacks, and removes the previous map, if there is one. Returns how
    /// many were copied. Stops between system calls once it is `stopped`.
    ///
    /// # Errors
    /// The kernel's, of the first entry that could not be copied. All others are, and that one is still looked up in the previous map.
    pub(crate) fn settle(&self, stopped: &dyn Fn() -> bool) -> io::Result<u32> {
        let Some(previous) = self.previous()? else { return Ok(0) };
        let (previous, current) = (ByteMap::new(previous)?, ByteMap::new(self.current()?)?);
        let mut copier =
            Copier { previous: &previous, current: &current, value: Vec::new(), now: Vec::new() };
        let (mut copied, mut result) = (0, Ok(()));
        if previous.info().id != current.info().id {
            let (mut batch, mut from) = (Batch::default(), None);
            loop {
                let (count, next) = previous.read(from, &mut batch)?;
                for key in previous.keys(&batch, count) {
                    match copier.copy(key) {
                        Ok(is_copied) => copied += u32::from(is_copied),
                        // A bucket that another task of this CPU holds is EBUSY, for one.
                        Err(error) if result.is_ok() => result = Err(error),
                        Err(_) => {}
                    }
                }
                if stopped() {
                    return Ok(copied);
                }
                let Some(next) = next else { break };
                from = Some(next);
            }
        }
        result?;
        // The kernel waits for programs that looked into the current map before the last entry was copied.
        set_inner(self.slots.as_fd(), PREVIOUS, previous.fd())?;
        // Before Linux 6.8 nothing but this descriptor keeps the map for programs that still read it.
        delete_element(self.slots.as_fd(), PREVIOUS)?;
        Ok(copied)
    }

    /// Whether all entries are in the current map, and that is the one with this id.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn is_settled(&self, id: u32) -> io::Result<bool> {
        Ok(inner_id(self.slots.as_fd(), PREVIOUS)?.is_none() && self.current_id()? == Some(id))
    }

    fn make(&self, entries: u32) -> io::Result<OwnedFd> {
        let Definition { kind, key_size, value_size, flags, name, .. } = *self.definition;
        let kind = kind as u32;
        let new =
            NewMap { kind, key_size, value_size, flags, name, max_entries: entries, ..NewMap::default() };
        new.create()
    }
}

/// Copies entries.
struct Copier<'a> {
    previous: &'a ByteMap,
    current: &'a ByteMap,
    value: Vec<u8>,
    /// Another one, to compare.
    now: Vec<u8>,
}

impl Copier<'_> {
    /// Copies an entry as it is now; false if that is not needed. A program removes an entry from the previous map first: if it is gone from
    /// there after it was inserted, the program may not have seen it in the current one.
    fn copy(&mut self, key: &[u8]) -> io::Result<bool> {
        let Self { previous, current, value, now } = self;
        if !previous.get(key, value)? || !current.insert_new(key, value)? {
            return Ok(false);
        }
        if previous.get(key, now)? {
            return Ok(true);
        }
        // A program may have inserted another one meanwhile.
        if current.get(key, now)? && now == value {
            current.remove(key)?;
        }
        Ok(false)
    }
}

#[cfg(test)]
impl ByUseMap {
    /// A map of flows that no program uses, with so many entries; `None` without the permission to make one.
    pub(crate) fn unused(entries: u32) -> Option<Self> {
        use proxy_common::layout::{by_use::SLOTS, maps::Kind};

        let definition = maps::find("flows_v4").unwrap();
        let Definition { key_size, value_size, .. } = *definition;
        let inner =
            NewMap { kind: Kind::LruHash as u32, key_size, value_size, max_entries: 1, ..NewMap::default() };
        let inner = match inner.create() {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return None,
            inner => inner.unwrap(),
        };
        let slots = NewMap {
            kind: Kind::ArrayOfMaps as u32,
            key_size: 4,
            value_size: 4,
            max_entries: SLOTS as u32,
            inner: Some(inner.as_fd()),
            ..NewMap::default()
        };
        let map = Self::new(definition, slots.create().unwrap());
        map.begin(entries).unwrap();
        Some(map)
    }

    /// Fills the current map with so many entries, and has the kernel refuse another one.
    pub(crate) fn fill_and_freeze(&self, entries: u32) {
        let current = ByteMap::new(self.current().unwrap()).unwrap();
        let (mut key, value) =
            (vec![0; self.definition.key_size as usize], vec![0; self.definition.value_size as usize]);
        for entry in 0..entries {
            key[..4].copy_from_slice(&entry.to_ne_bytes());
            assert!(current.insert_new(&key, &value).unwrap());
        }
        proxy_sys::bpf::map::freeze(self.slots.as_fd()).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proxy_common::{
        V4,
        layout::flow::{Flow, FlowKey},
    };

    use super::*;
    use crate::datapath::hash::Hash;

    type Entries = Hash<FlowKey<V4>, Flow<V4>>;

    fn map(entries: u32) -> Option<ByUseMap> {
        ByUseMap::unused(entries)
    }

    fn entries(map: &ByUseMap) -> Entries {
        Hash::replacing(map.current().unwrap(), map.previous().unwrap()).unwrap()
    }

    fn key(port: u16) -> FlowKey<V4> {
        let mut key = FlowKey::default();
        key.tuple.sport = port;
        key
    }

    fn flow(last_seen: u32) -> Flow<V4> {
        Flow { last_seen, ..Flow::default() }
    }

    /// What [`Hash`] reads, the last value of each.
    fn contents(map: &ByUseMap) -> BTreeMap<u16, u32> {
        let found = entries(map).entries().unwrap().into_iter();
        found.map(|(key, flow)| (key.tuple.sport, flow.last_seen)).collect()
    }

    #[test]
    fn entries_move_to_a_larger_map() {
        const COUNT: u16 = 3000;
        let Some(map) = map(8192) else { return };
        assert_eq!((map.capacity().unwrap(), map.count().unwrap()), (8192, 0));
        assert_eq!(map.settle(&|| false).unwrap(), 0, "nothing is replaced");
        (0..COUNT).for_each(|port| entries(&map).insert(&key(port), &flow(1)).unwrap());
        assert_eq!(map.count().unwrap(), u32::from(COUNT));
        let mut expected: BTreeMap<_, _> = (0..COUNT).map(|port| (port, 1)).collect();

        map.enlarge(16_384, 16_384).unwrap();
        assert_eq!((map.capacity().unwrap(), map.count().unwrap()), (16_384, 0));
        assert_eq!(contents(&map), expected, "readers find them");
        // A program inserts a new entry, and replaces one; another one is removed.
        entries(&map).insert(&key(COUNT), &flow(2)).unwrap();
        entries(&map).insert(&key(7), &flow(2)).unwrap();
        Entries::replacing(map.previous().unwrap().unwrap(), None).unwrap().remove(&key(8)).unwrap();
        expected.extend([(COUNT, 2), (7, 2)]);
        expected.remove(&8);
        assert_eq!(contents(&map), expected);
        assert_eq!(map.settle(&|| false).unwrap(), u32::from(COUNT) - 2);
        assert!(map.previous().unwrap().is_none());
        assert_eq!(contents(&map), expected);
    }

    #[test]
    fn an_entry_that_is_removed_while_it_is_copied_stays_removed() {
        let Some(map) = map(64) else { return };
        entries(&map).insert(&key(1), &flow(1)).unwrap();
        map.enlarge(128, 128).unwrap();
        let (previous, current) = (map.previous().unwrap().unwrap(), map.current().unwrap());
        let maps = [previous, current].map(|map| ByteMap::new(map).unwrap());
        let mut copier = Copier { previous: &maps[0], current: &maps[1], value: Vec::new(), now: Vec::new() };
        let mut batch = Batch::default();
        let (count, _) = maps[0].read(None, &mut batch).unwrap();
        let key = maps[0].keys(&batch, count).next().unwrap();
        maps[0].remove(key).unwrap();
        assert!(!copier.copy(key).unwrap(), "gone before it was read");
        assert!(contents(&map).is_empty());
    }

    #[test]
    fn stopped_it_leaves_the_rest_to_the_next_agent() {
        let Some(map) = map(8192) else { return };
        (0..3000).for_each(|port| entries(&map).insert(&key(port), &flow(1)).unwrap());
        map.enlarge(16_384, 16_384).unwrap();
        assert!(map.settle(&|| true).unwrap() < 3000);
        assert!(!map.is_settled(map.current_id().unwrap().unwrap()).unwrap());
        assert_eq!(contents(&map).len(), 3000);
        map.settle(&|| false).unwrap();
        assert!(map.is_settled(map.current_id().unwrap().unwrap()).unwrap());
        assert_eq!(contents(&map).len(), 3000);
    }

    #[test]
    fn an_interrupted_move_is_completed_before_the_next() {
        let Some(map) = map(1024) else { return };
        entries(&map).insert(&key(1), &flow(1)).unwrap();
        map.enlarge(4096, 4096).unwrap();
        entries(&map).insert(&key(2), &flow(2)).unwrap();
        map.enlarge(16_384, 16_384).unwrap();
        map.settle(&|| false).unwrap();
        assert_eq!(contents(&map), [(1, 1), (2, 2)].into());
        // Killed between the two steps of the replacement.
        set_inner(map.slots.as_fd(), PREVIOUS, map.current().unwrap().as_fd()).unwrap();
        assert_eq!(map.settle(&|| false).unwrap(), 0);
        assert!(map.previous().unwrap().is_none());
        assert_eq!(contents(&map), [(1, 1), (2, 2)].into());
    }

    #[test]
    fn room_at_first_is_no_more_than_wanted() {
        let size = maps::find("flows_v4").and_then(Definition::by_use).unwrap();
        assert_eq!(first(size, 100), 100);
        assert!(first(size, u32::MAX) >= size.first);
    }
}
