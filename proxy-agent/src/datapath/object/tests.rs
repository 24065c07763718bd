//! The objects in this binary against the table of maps and the list of constants.

use std::collections::BTreeSet;

use proxy_common::layout::{by_use::SLOTS, config::CONSTANTS, maps};

use super::*;

/// The objects; none if this was built without programs.
fn objects() -> impl Iterator<Item = aya_obj::Object> {
    let variants = [Variant::Plain, Variant::PlainWithLines, Variant::Logging];
    let built = variants.into_iter().map(Variant::bytes).filter(|bytes| !bytes.is_empty());
    built.map(|bytes| aya_obj::Object::parse(bytes).unwrap())
}

#[test]
fn maps_are_those_of_the_table() {
    for object in objects() {
        // Sections of data are maps as well, and aya-log has its own.
        let is_ours = |name: &str| !name.starts_with('.') && !name.starts_with("AYA_LOG");
        let in_object: BTreeSet<_> =
            object.maps.keys().map(String::as_str).filter(|name| is_ours(name)).collect();
        let in_table: BTreeSet<_> = maps::all().map(|map| map.name).collect();
        assert_eq!(in_object, in_table);
        for map in maps::all() {
            let found = &object.maps[map.name];
            let inner = found.inner();
            let found = match map.by_use() {
                Some(_) => {
                    assert_eq!(found.map_type(), maps::Kind::ArrayOfMaps as u32, "{}", map.name);
                    assert_eq!(found.max_entries(), SLOTS as u32, "{}", map.name);
                    inner.as_ref().unwrap()
                }
                None => found,
            };
            let numbers = (found.map_type(), found.key_size(), found.max_entries(), found.map_flags());
            assert_eq!(numbers, (map.kind as u32, map.key_size, map.entries, map.flags), "{}", map.name);
            // 0: a type that the programs alone know.
            assert!(
                [0, found.value_size()].contains(&map.value_size),
                "{}: {}",
                map.name,
                found.value_size()
            );
        }
    }
}

#[test]
fn constants_are_those_of_the_list() {
    let encoded = Constants::default().encode();
    let names: Vec<_> = encoded.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, CONSTANTS.iter().map(|constant| constant.name).collect::<Vec<_>>());
    for mut object in objects() {
        let values = encoded.iter().map(|(name, value)| (*name, (value.as_bytes(), true))).collect();
        // Fails if a name is missing, or its size in bytes differs.
        object.patch_map_data(values).unwrap();
    }
}
