//! Tables of maps, from their definitions.

use std::fmt::Write as _;

use proxy_common::layout::{
    group::Group,
    maps::{
        self, ByUse, Capacity, Definition, Kind, MIN_PENDING, MMAPABLE, Most, ON_DEMAND, PENDING_PART, Size,
    },
};

use super::{grouped, header, row};

/// Every map: its contents, its writers and readers, its size.
pub(super) fn table() -> String {
    let titles = ["map", "type", "key -> value", "bytes: key, value", "written by", "read by", "entries"];
    let mut table = header(&titles);
    for (map, other) in pairs() {
        table += &row(&[
            &names(map, other),
            &kind(map),
            map.doc,
            &bytes(map, other),
            map.written_by,
            map.read_by,
            &entries(map),
        ]);
    }
    table
}

/// The maps of each group.
pub(super) fn groups() -> String {
    let mut table = header(&["directory", "maps"]);
    for group in Group::ALL {
        let maps: Vec<_> = pairs()
            .filter(|(map, _)| map.group == group)
            .map(|(map, other)| match other {
                Some(_) => format!("`{}_*`", base(map)),
                None => format!("`{}`", map.name),
            })
            .collect();
        table += &row(&[&format!("`{}`", group.directory()), &maps.join(", ")]);
    }
    table
}

/// The capacities of the maps of services.
pub(super) fn capacities() -> String {
    let mut table = header(&["of", "room at first", "at most", "maps"]);
    for capacity in Capacity::ALL {
        let of = match capacity {
            Capacity::ServicePorts => "service ports (per family and protocol)",
            Capacity::Backends => "endpoints of service ports, both families",
            Capacity::Slots => "slots: endpoints in backend sets, per family",
            Capacity::Frontends => "frontends: addresses with port, and node ports, per family",
        };
        let maps: Vec<_> = pairs()
            .filter(|(map, _)| matches!(map.size, Size::Grows(of, _) if of == capacity))
            .map(|(map, other)| names(map, other))
            .collect();
        let (initial, most) = (grouped(capacity.initial()), grouped(capacity.most()));
        table += &row(&[of, &initial, &most, &maps.join(", ")]);
    }
    table
}

/// Maps of both families alone, those of one beside their counterparts.
fn pairs() -> impl Iterator<Item = (&'static Definition, Option<&'static Definition>)> {
    let shared = maps::table::SHARED.iter().map(|map| (map, None));
    shared.chain(maps::table::OF_V4.iter().zip(maps::table::OF_V6).map(|(v4, v6)| (v4, Some(v6))))
}

/// The name without its family.
fn base(map: &Definition) -> &str {
    map.name.strip_suffix("_v4").unwrap_or(map.name)
}

fn names(map: &Definition, other: Option<&Definition>) -> String {
    match other {
        Some(_) => format!("`{}`, `_v6`", map.name),
        None => format!("`{}`", map.name),
    }
}

fn kind(map: &Definition) -> String {
    let kind = match map.kind {
        Kind::Hash => "HASH",
        Kind::Array => "ARRAY",
        Kind::PerCpuArray => "PERCPU ARRAY",
        Kind::LruHash => "LRU HASH",
        Kind::LpmTrie => "LPM TRIE",
        Kind::ArrayOfMaps => "ARRAY OF MAPS",
        Kind::SkStorage => "SK_STORAGE",
        Kind::RingBuf => "RING BUFFER",
    };
    let mut text = kind.to_owned();
    if map.flags & MMAPABLE != 0 {
        text += ", mmap";
    }
    // The kernel takes the other kinds with it only.
    if map.flags & ON_DEMAND != 0 && map.kind == Kind::Hash {
        text += ", on demand";
    }
    text
}

fn bytes(map: &Definition, other: Option<&Definition>) -> String {
    let both = |size: fn(&Definition) -> u32| {
        let [one, two] = [map, other.unwrap_or(map)].map(size);
        let mut text = if one == 0 { "own".to_owned() } else { grouped(one) };
        if two != one {
            let _ = write!(text, " / {}", grouped(two));
        }
        text
    };
    if map.kind == Kind::RingBuf {
        return "-".to_owned();
    }
    let key = if map.kind == Kind::SkStorage { "-".to_owned() } else { both(|map| map.key_size) };
    format!("{key}, {}", both(|map| map.value_size))
}

fn entries(map: &Definition) -> String {
    match map.size {
        Size::InObject if map.kind == Kind::SkStorage => "one per socket".to_owned(),
        Size::InObject if map.kind == Kind::RingBuf => format!("{} bytes", grouped(map.entries)),
        Size::InObject => grouped(map.entries),
        Size::AtLoad(entries) => grouped(entries),
        Size::ByUse(ByUse { first, most, .. }) => {
            let most = match most {
                Most::Entries(entries) => grouped(entries),
                Most::Flows => "by memory (`--max-flows`)".to_owned(),
                Most::PendingFlows => {
                    format!("1/{PENDING_PART} of `flows`, at least {}", grouped(MIN_PENDING))
                }
            };
            format!("{} at first; at most {most}", grouped(first))
        }
        Size::Grows(capacity, entries) => format!("{} at first", grouped(entries(capacity.initial()))),
    }
}
