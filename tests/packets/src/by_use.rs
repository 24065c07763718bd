//! The maps that grow by use: an array of maps in the object, and the maps in it, which the loader does not make.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use proxy_common::layout::{
    by_use::{CURRENT, PREVIOUS},
    maps::{Definition, all},
};
use proxy_sys::bpf::{
    btf::{self, MapTypes},
    map::{NewMap, delete_element, set_inner},
};

/// The maps into which programs insert.
pub(super) struct ByUse {
    current: HashMap<&'static str, Map>,
    /// Linux 5.15 to 6.1 take only maps with types into an array that was made with one that has types, as aya does.
    types: Option<OwnedFd>,
    /// By name: the types of key and value.
    ids: HashMap<&'static str, (u32, u32)>,
}

impl ByUse {
    /// Makes the maps for a loaded object, with so many entries.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn new(ebpf: &Ebpf, bytes: &[u8], entries: impl Fn(&Definition) -> u32) -> Result<Self> {
        let mut object = aya_obj::Object::parse(bytes)?;
        let types = match aya::features().btf() {
            Some(features) => {
                object.fixup_and_sanitize_btf(features)?.map(|types| btf::load(&types.to_bytes()))
            }
            None => None,
        };
        let mut by_use = Self { current: HashMap::new(), types: types.transpose()?, ids: HashMap::new() };
        for map in all().filter(|map| map.by_use().is_some()) {
            if let Some(aya_obj::Map::Btf(inner)) = object.maps.get(map.name).and_then(aya_obj::Map::inner) {
                by_use.ids.insert(map.name, (inner.def.btf_key_type_id, inner.def.btf_value_type_id));
            }
            let current = by_use.make(map, entries(map)).with_context(|| map.name.to_owned())?;
            set_inner(slots(ebpf, map.name)?, CURRENT, current.as_fd())
                .with_context(|| map.name.to_owned())?;
            by_use.current.insert(map.name, Map::LruHashMap(MapData::from_fd(current)?));
        }
        Ok(by_use)
    }

    /// The map of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Map> {
        self.current.get(name)
    }

    /// The same, to be written.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Map> {
        self.current.get_mut(name)
    }

    /// All with their names.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &Map)> {
        self.current.iter().map(|(name, map)| (*name, map))
    }

    /// Has programs insert into new maps; the others are being replaced from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn enlarge(&mut self, ebpf: &Ebpf) -> Result<()> {
        for map in all().filter(|map| map.by_use().is_some()) {
            let Some(Map::LruHashMap(current)) = self.current.get(map.name) else {
                bail!("no `{}`", map.name)
            };
            let larger = self.make(map, current.info()?.max_entries())?;
            let slots = slots(ebpf, map.name)?;
            set_inner(slots, PREVIOUS, current.fd().as_fd())?;
            set_inner(slots, CURRENT, larger.as_fd())?;
            self.current.insert(map.name, Map::LruHashMap(MapData::from_fd(larger)?));
        }
        Ok(())
    }

    /// Removes the maps that are being replaced.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn forget_previous(&self, ebpf: &Ebpf) -> Result<()> {
        self.current.keys().try_for_each(|name| Ok(delete_element(slots(ebpf, name)?, PREVIOUS)?))
    }

    fn make(&self, map: &'static Definition, entries: u32) -> Result<OwnedFd> {
        let types = self.types.as_ref().zip(self.ids.get(map.name));
        let new = NewMap {
            kind: map.kind as u32,
            key_size: map.key_size,
            value_size: map.value_size,
            max_entries: entries,
            types: types.map(|(types, (key, value))| MapTypes {
                types: types.as_fd(),
                key: *key,
                value: *value,
            }),
            ..NewMap::default()
        };
        Ok(new.create()?)
    }
}

/// The array of a map.
fn slots<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>> {
    match ebpf.map(name) {
        Some(Map::ArrayOfMaps(slots)) => Ok(slots.fd().as_fd()),
        _ => bail!("`{name}` is no array of maps"),
    }
}
