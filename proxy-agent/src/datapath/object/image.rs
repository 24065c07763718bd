//! The compiled objects inside this binary, read by aya-obj: their maps, and their programs linked with all that they call.

use std::{
    collections::{HashMap, HashSet},
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use aya_obj::{
    EbpfSectionKind, Map, ProgramSection,
    generated::{bpf_attach_type, bpf_insn},
};
use proxy_common::layout::{
    by_use,
    maps::{self, Kind},
};
use proxy_sys::bpf::{
    btf::{self, MapTypes},
    map::{NewMap, freeze, set_value},
    open_pinned, pin, program,
};
use tracing::warn;

use super::parallel::in_parallel;
use crate::datapath::{by_use::ByUseMap, denied::Refused};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PROXY_AGENT_BPF_OBJECT"));
static OBJECT_WITH_LINES: &[u8] = aya::include_bytes_aligned!(env!("PROXY_AGENT_BPF_OBJECT_LINES"));
static LOGGING_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PROXY_AGENT_BPF_OBJECT_LOG"));

const RINGBUF: u32 = Kind::RingBuf as u32;
/// `BPF_F_XDP_HAS_FRAGS`
const XDP_HAS_FRAGS: u32 = 1 << 5;

/// A variant of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// Without lines of source, which are two thirds of the other one.
    Plain,
    /// The same with them, for the verifier's log.
    PlainWithLines,
    /// The programs that log.
    Logging,
}

impl Variant {
    pub(super) fn bytes(self) -> &'static [u8] {
        match self {
            Self::Plain => OBJECT,
            Self::PlainWithLines => OBJECT_WITH_LINES,
            Self::Logging => LOGGING_OBJECT,
        }
    }

    /// The same programs with lines of source.
    pub(super) fn with_lines(self) -> Self {
        if self == Self::Plain { Self::PlainWithLines } else { self }
    }
}

/// An object, read. It takes megabytes, and is dropped when its programs are linked.
pub(super) struct Image(aya_obj::Object);

/// A program with all that it calls.
#[derive(Debug)]
pub(super) struct Linked {
    pub(super) name: String,
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) attach_type: u32,
    pub(super) instructions: Vec<u64>,
    /// `bpf_func_info`
    pub(super) functions: Vec<u8>,
    /// `bpf_line_info`
    pub(super) lines: Vec<u8>,
}

impl Image {
    /// Reads an object, without the types of functions that this kernel does not know.
    pub(super) fn read(variant: Variant) -> Result<Self> {
        let bytes = variant.bytes();
        if bytes.is_empty() {
            bail!("this binary was built without its kernel programs: build it with `cargo xtask build`");
        }
        let mut object = aya_obj::Object::parse(bytes).context("cannot read the kernel programs")?;
        object.sanitize_functions(aya::features());
        Ok(Self(object))
    }

    /// Sets constants; the second part of a value: must the object have one of that name?
    pub(super) fn set_constants(&mut self, values: HashMap<&str, (&[u8], bool)>) -> Result<()> {
        Ok(self.0.patch_map_data(values)?)
    }

    /// Loads the types that this kernel supports.
    pub(super) fn load_types(&mut self) -> Result<Option<OwnedFd>> {
        let Some(features) = aya::features().btf() else { return Ok(None) };
        let Some(types) = self.0.fixup_and_sanitize_btf(features)? else { return Ok(None) };
        let loaded = btf::load(&types.to_bytes());
        if let Err(error) = &loaded {
            warn!(
                "the kernel refuses the types of the programs, and may refuse the programs without: {error}"
            );
        }
        Ok(loaded.ok())
    }

    /// Names of the programs.
    pub(super) fn program_names(&self) -> Vec<String> {
        self.0.programs.keys().cloned().collect()
    }

    /// Makes all maps, with the given numbers of entries instead of the object's. Maps with a path for a pin are opened there, or pinned.
    /// Several threads do it: the kernel fills the large ones with entries.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn make_maps(
        &self,
        entries: &HashMap<&str, u32>,
        pins: &HashMap<&str, PathBuf>,
        types: Option<BorrowedFd<'_>>,
    ) -> Result<HashMap<String, OwnedFd>, Refused> {
        let entries = |name: &str, map: &Map| entries.get(name).copied().unwrap_or(map.max_entries());
        let make = |(name, map): (&String, &Map)| {
            let entries = entries(name, map);
            let pinned = pins.get(name.as_str());
            if let Some(fd) = pinned.and_then(|path| open_pinned(path).ok()) {
                return Ok((name.clone(), fd));
            }
            let fd = match maps::find(name).filter(|map| map.by_use().is_some()) {
                Some(definition) => {
                    let by_use = ByUseMap::new(definition, create(map, name, map.max_entries(), types)?);
                    by_use.begin(entries).map_err(Refused::request(format!("make the map `{name}`")))?;
                    by_use.into_slots()
                }
                None => create(map, name, entries, types)?,
            };
            let Some(path) = pinned else { return Ok((name.clone(), fd)) };
            match pin(fd.as_fd(), path) {
                Ok(()) => Ok(fd),
                // Another agent that starts pinned its own meanwhile.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_pinned(path),
                Err(error) => Err(error),
            }
            .map(|fd| (name.clone(), fd))
            .map_err(Refused::request(format!("pin the map {}", path.display())))
        };
        let mut maps: Vec<_> = self.0.maps.iter().collect();
        maps.sort_by_key(|(name, map)| entries(name, map));
        // The kernel waits for a grace period whenever it sets an element of an array of maps; those of several threads are one.
        in_parallel(maps, by_use::MAPS as usize, make).into_iter().collect()
    }

    /// Has the programs use these maps.
    pub(super) fn use_maps(&mut self, maps: &HashMap<String, OwnedFd>) -> Result<()> {
        let declared = mem::take(&mut self.0.maps);
        let made =
            declared.iter().filter_map(|(name, map)| Some((name.as_str(), maps.get(name)?.as_raw_fd(), map)));
        let sections = self.sections();
        let result = self.0.relocate_maps(made, &sections);
        self.0.maps = declared;
        Ok(result?)
    }

    /// Links a program.
    pub(super) fn link(&mut self, name: &str) -> Result<Linked> {
        let program =
            self.0.programs.get(name).with_context(|| format!("program `{name}` does not exist"))?.clone();
        let (kind, flags, attach_type) =
            kind_of(&program.section).with_context(|| format!("`{name}` is not a program of ours"))?;
        let key = program.function_key();
        let unlinked = self.0.functions.get(&key).cloned();
        let sections = self.sections();
        // `relocate_calls` links all programs of the object, each with a copy of the functions that it calls.
        let all = mem::replace(&mut self.0.programs, HashMap::from([(name.to_owned(), program)]));
        let result = self.0.relocate_calls(&sections);
        self.0.programs = all;
        let linked = unlinked.and_then(|unlinked| self.0.functions.insert(key, unlinked));
        result?;
        let linked = linked.with_context(|| format!("the program `{name}` has no instructions"))?;
        Ok(Linked {
            name: name.to_owned(),
            kind,
            flags,
            attach_type,
            instructions: linked.instructions.into_iter().map(word).collect(),
            functions: linked.func_info.func_info_bytes(),
            lines: linked.line_info.line_info_bytes(),
        })
    }

    /// Sections with functions.
    fn sections(&self) -> HashSet<usize> {
        self.0.functions.keys().map(|(section, _)| *section).collect()
    }
}

/// An instruction, as the kernel takes it (`struct bpf_insn` of `include/uapi/linux/bpf.h`).
fn word(instruction: bpf_insn) -> u64 {
    let registers = instruction.dst_reg() | instruction.src_reg() << 4;
    let [o0, o1] = instruction.off.to_le_bytes();
    let [i0, i1, i2, i3] = instruction.imm.to_le_bytes();
    u64::from_le_bytes([instruction.code, registers, o0, o1, i0, i1, i2, i3])
}

/// `bpf_attr.prog_type`, `prog_flags` and `expected_attach_type`.
fn kind_of(section: &ProgramSection) -> Option<(u32, u32, u32)> {
    Some(match section {
        ProgramSection::SchedClassifier => (program::SCHED_CLS, 0, 0),
        ProgramSection::Xdp { frags, attach_type } => {
            let flags = if *frags { XDP_HAS_FRAGS } else { 0 };
            (program::XDP, flags, bpf_attach_type::from(*attach_type) as u32)
        }
        ProgramSection::CgroupSockAddr { attach_type } => {
            (program::CGROUP_SOCK_ADDR, 0, bpf_attach_type::from(*attach_type) as u32)
        }
        ProgramSection::CgroupSock { attach_type } => {
            (program::CGROUP_SOCK, 0, bpf_attach_type::from(*attach_type) as u32)
        }
        _ => return None,
    })
}

/// Entries of the map that shows the kernel the kind of the maps inside another one. The kernel does not compare those of a hash
/// (since 5.10, commit 134fede4eecf).
fn template_entries(inner: &Map) -> u32 {
    if inner.map_type() == RINGBUF { inner.max_entries() } else { 1 }
}

/// Makes a map with the object's values. Those of constants are frozen.
fn create(map: &Map, name: &str, entries: u32, types: Option<BorrowedFd<'_>>) -> Result<OwnedFd, Refused> {
    // Without types, as the maps that take its place: Linux 5.15 to 6.1 compare what they know of timers in values.
    let inner = map.inner().map(|inner| create(&inner, name, template_entries(&inner), None)).transpose()?;
    let kind = map.map_type();
    let has_types = ![Kind::ArrayOfMaps as u32, RINGBUF].contains(&kind);
    let types = match map {
        Map::Btf(map) if has_types => types.map(|types| MapTypes {
            types,
            key: map.def.btf_key_type_id,
            value: map.def.btf_value_type_id,
        }),
        _ => None,
    };
    let new = NewMap {
        kind,
        key_size: map.key_size(),
        value_size: if kind == RINGBUF { 0 } else { map.value_size() },
        max_entries: entries,
        flags: map.map_flags(),
        inner: inner.as_ref().map(|inner| inner.as_fd()),
        name,
        types,
    };
    let refused = |action: &str| Refused::request(format!("{action} the map `{name}`"));
    let fd = new.create().map_err(refused("make"))?;
    if !map.data().is_empty() {
        set_value(fd.as_fd(), map.data()).map_err(refused("write"))?;
    }
    if map.section_kind() == EbpfSectionKind::Rodata {
        freeze(fd.as_fd()).map_err(refused("freeze"))?;
    }
    Ok(fd)
}
