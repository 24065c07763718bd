//! Looks on while the running programs decide: attaches programs to functions of theirs (`fentry`, `fexit`), for as long as an
//! [`Observer`] lives. The kernel detaches them when the process ends, however it ends; nothing is pinned, and the agent need not know.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::{Array, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf},
    programs::{ProgramInfo, loaded_programs},
};
use aya_obj::{
    Object,
    btf::{Btf, BtfKind},
    generated::bpf_insn,
};
use proxy_common::layout::event::{EventFilter, RateKey, Reported};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    fentry::{self, AttachType},
    pins::Pins,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PROXY_AGENT_BPF_OBJECT_OBSERVE"));

/// Functions of the programs, and what is attached to them.
const POINTS: [(&str, &str, AttachType); 4] = [
    ("open_flow4_of_skb", "flow_opened4", AttachType::Fexit),
    ("open_flow6_of_skb", "flow_opened6", AttachType::Fexit),
    ("packet_refused", "packet_refused", AttachType::Fentry),
    ("socket_decided", "socket_decided", AttachType::Fentry),
];

/// Maps of the programs that are looked at.
const SHARED: [&str; 4] = ["pair_v4", "pair_v6", "scratch_v4", "scratch_v6"];

/// Looks on until it is dropped.
pub(crate) struct Observer {
    code: BTreeMap<String, Vec<bpf_insn>>,
    /// The maps that the code names by these descriptors.
    _descriptors: HashMap<String, OwnedFd>,
    /// Taken by who reads them.
    events: Option<Map>,
    reported: PerCpuArray<MapData, Reported>,
    rates: PerCpuHashMap<MapData, RateKey, u64>,
    /// The kernel's id of the map that all programs of the agent use.
    mark: u32,
    /// Types of programs, by the kernel's id.
    types: HashMap<u32, Btf>,
    /// Programs that were looked at, by the kernel's id.
    seen: HashSet<u32>,
    /// What keeps programs attached, by what they are attached to.
    links: BTreeMap<u32, Vec<OwnedFd>>,
}

impl Observer {
    /// Looks on at all programs of the agent with these pins.
    ///
    /// # Errors
    /// When there are none, or the kernel refuses.
    pub(crate) fn start(pins: &Pins, filter: &EventFilter) -> Result<Self> {
        if OBJECT.is_empty() {
            bail!("this binary was built without its kernel programs: build it with `cargo xtask build`");
        }
        let path = pins.map("counters");
        let counters = MapData::from_pin(&path).with_context(|| {
            format!(
                "no agent of this release has run with these pins ({}): name its directory with --bpffs",
                path.display()
            )
        })?;
        let mark = counters.info()?.id();
        let mut object = Object::parse(OBJECT)?;
        let mut maps = maps(&object, pins)?;
        let descriptors = maps
            .iter()
            .map(|(name, map)| Ok((name.clone(), map.fd().as_fd().try_clone_to_owned()?)))
            .collect::<Result<HashMap<_, _>>>()?;
        let code = relocate(&mut object, &descriptors)?;
        let mut own = |name: &str| maps.remove(name).with_context(|| format!("no map `{name}`"));
        let mut map: Array<MapData, EventFilter> = Map::Array(own("filter")?).try_into()?;
        map.set(0, *filter, 0)?;
        let mut observer = Self {
            code,
            _descriptors: descriptors,
            events: Some(Map::RingBuf(own("events")?)),
            reported: Map::PerCpuArray(own("reported")?).try_into()?,
            rates: Map::PerCpuLruHashMap(own("rates")?).try_into()?,
            mark,
            types: HashMap::new(),
            seen: HashSet::new(),
            links: BTreeMap::new(),
        };
        observer.attach_new()?;
        if observer.links.is_empty() {
            bail!("no program of the agent is loaded: is it running?");
        }
        Ok(observer)
    }

    /// Looks on at programs that were loaded since. Those that a newer agent replaced are left alone from then on: what looks on keeps
    /// them in memory.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn attach_new(&mut self) -> Result<()> {
        let mut newest: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        for program in loaded_programs() {
            // One that is gone by now.
            let Ok(program) = program else { continue };
            if self.links.contains_key(&program.id()) {
                let name = program.name_as_str().unwrap_or_default().to_owned();
                newest.entry(name).or_default().insert(program.id());
            }
            if self.seen.insert(program.id()) && is_of(&program, self.mark) {
                self.attach(&program).with_context(|| {
                    format!("cannot look on at {}", String::from_utf8_lossy(program.name()))
                })?;
            }
        }
        for ids in newest.into_values() {
            let stale = ids.len().saturating_sub(2);
            for id in ids.into_iter().take(stale) {
                self.links.remove(&id);
            }
        }
        Ok(())
    }

    fn attach(&mut self, program: &ProgramInfo) -> Result<()> {
        let Some(types) = program.btf_id() else { return Ok(()) };
        let fd = program.fd()?;
        let functions = fentry::functions(fd.as_fd())?;
        if !self.types.contains_key(&types) {
            self.types.insert(types, fentry::types(types)?);
        }
        let types = self.types.get(&types).context("no types")?;
        let mut links = Vec::new();
        for (function, name, attach_type) in POINTS {
            // All programs of an object share their types: not each has each function.
            let Ok(id) = types.id_by_type_name_kind(function, BtfKind::Func) else { continue };
            if !functions.contains(&id) {
                continue;
            }
            let code = self.code.get(name).with_context(|| format!("no program `{name}`"))?;
            links.push(fentry::attach(name, code, attach_type, fd.as_fd(), id)?);
        }
        if !links.is_empty() {
            self.links.insert(program.id(), links);
        }
        Ok(())
    }

    /// At how many programs.
    pub(crate) fn programs(&self) -> usize {
        self.links.len()
    }

    /// The events. To be called once, within a tokio runtime.
    ///
    /// # Errors
    /// When they cannot be mapped.
    pub(crate) fn events(&mut self) -> Result<AsyncFd<RingBuf<MapData>>> {
        let map = self.events.take().context("the events are read already")?;
        let ring = RingBuf::try_from(map)?;
        // SAFETY: the ring keeps its map's descriptor open and the same.
        Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
    }

    /// How many events were lost so far.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn lost(&self) -> Result<u64> {
        Ok(self.reported.get(&0, 0)?.iter().map(|reported| reported.lost).sum())
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn rates(&self) -> Result<HashMap<RateKey, u64>> {
        // Walking a map that changes can begin anew: there is an end.
        const PATIENCE: usize = 1 << 17;
        let sum = |entry: Result<(RateKey, aya::maps::PerCpuValues<u64>), _>| {
            entry.map(|(key, values)| (key, values.iter().sum()))
        };
        Ok(self.rates.iter().take(PATIENCE).map(sum).collect::<Result<_, aya::maps::MapError>>()?)
    }
}

/// Does a program use a map?
fn is_of(program: &ProgramInfo, map: u32) -> bool {
    matches!(program.map_ids(), Ok(Some(ids)) if ids.contains(&map))
}

/// Its own maps, and those of the programs that it looks at.
fn maps(object: &Object, pins: &Pins) -> Result<HashMap<String, MapData>> {
    let map = |name: &str, map: &aya_obj::Map| -> Result<MapData> {
        if !SHARED.contains(&name) {
            // Without the types, which the kernel would want to have loaded first.
            let plain = aya_obj::Map::new_from_params(
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
                map.map_flags(),
            );
            return Ok(MapData::create(plain, name, None)?);
        }
        let path = pins.map(name);
        let shared = MapData::from_pin(&path)?;
        if shared.info()?.value_size() != map.value_size() {
            bail!("{} is of another release: look on with that release's proxy-agent", path.display());
        }
        Ok(shared)
    };
    let named = |(name, obj): (&String, &aya_obj::Map)| {
        let data = map(name, obj).with_context(|| format!("cannot use the map `{name}`"))?;
        Ok((name.clone(), data))
    };
    object.maps.iter().map(named).collect()
}

/// The programs' instructions with these maps, by name.
fn relocate(object: &mut Object, maps: &HashMap<String, OwnedFd>) -> Result<BTreeMap<String, Vec<bpf_insn>>> {
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    let definitions = object.maps.clone();
    let maps =
        definitions.iter().filter_map(|(name, map)| Some((name.as_str(), maps.get(name)?.as_raw_fd(), map)));
    object.relocate_maps(maps, &sections)?;
    object.relocate_calls(&sections)?;
    let code = |(name, program): (&String, &aya_obj::Program)| {
        let function = object.functions.get(&program.function_key())?;
        Some((name.clone(), function.instructions.clone()))
    };
    Ok(object.programs.iter().filter_map(code).collect())
}
