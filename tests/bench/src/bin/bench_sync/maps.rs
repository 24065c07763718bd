//! The agent's maps, seen from outside: mapped into memory or looked up, while the agent writes them.

use std::{
    fs,
    marker::PhantomData,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use memmap2::{MmapOptions, MmapRaw};
use proxy_common::{
    V4,
    layout::{
        self,
        backend::Backend,
        by_use::{CURRENT, PREVIOUS},
        frontend::{Frontend, FrontendKey},
        group::Group,
        id::Id,
        set::{BackendSet, SetPolicy},
    },
};

use proxy_sys::bpf::map::inner;

use crate::objects::{PORT, Service, TARGET_PORT};

const TCP: u8 = 6;

const NAMES: [&str; 3] = ["frontends_v4", "backend_sets", "backends_v4"];

/// The maps of services.
pub(crate) struct Maps {
    bpffs: PathBuf,
    /// The kernel's ids of the maps.
    ids: [u32; 3],
    frontends: HashMap<MapData, FrontendKey<V4>, Frontend<V4>>,
    sets: View<u64>,
    backends: View<Backend<V4>>,
    /// When the pins were looked at last.
    followed: Instant,
}

impl Maps {
    /// Opens the maps below an agent's `--bpffs`; fails while they are not all there.
    pub(crate) fn open(bpffs: &Path) -> Result<Self> {
        let open = |name: &str| MapData::from_pin(pin(bpffs, name)).context(name.to_owned());
        let [frontends, sets, backends] = [open(NAMES[0])?, open(NAMES[1])?, open(NAMES[2])?];
        Ok(Self {
            bpffs: bpffs.to_owned(),
            ids: [frontends.info()?.id(), sets.info()?.id(), backends.info()?.id()],
            sets: View::new(&sets)?,
            backends: View::new(&backends)?,
            frontends: Map::HashMap(frontends).try_into()?,
            followed: Instant::now(),
        })
    }

    /// Opens them again if the agent has replaced any by a larger one.
    pub(crate) fn follow(&mut self) -> Result<()> {
        let is_pinned = |(name, id): (&str, &u32)| {
            MapInfo::from_pin(pin(&self.bpffs, name)).is_ok_and(|info| info.id() == *id)
        };
        if !NAMES.into_iter().zip(&self.ids).all(is_pinned) {
            *self = Self::open(&self.bpffs)?;
        }
        self.followed = Instant::now();
        Ok(())
    }

    /// The same, but rarely: a look at the pins takes longer than one at the maps, and disturbs what is measured.
    pub(crate) fn follow_at_times(&mut self) -> Result<()> {
        const BETWEEN: Duration = Duration::from_millis(20);
        if self.followed.elapsed() < BETWEEN { Ok(()) } else { self.follow() }
    }

    /// The id of a service's port, if its cluster IP is a frontend.
    pub(crate) fn cluster_ip(&self, service: &Service) -> Option<Id> {
        self.frontend(service.cluster_ip(), PORT)
    }

    /// The id of the service port that has a nodePort.
    pub(crate) fn node_port(&self, port: u16) -> Option<Id> {
        self.frontend(Ipv4Addr::UNSPECIFIED, port)
    }

    fn frontend(&self, address: Ipv4Addr, port: u16) -> Option<Id> {
        let key = FrontendKey::new(u32::from_ne_bytes(address.octets()), port.to_be(), TCP);
        Some(self.frontends.get(&key, 0).ok()?.checked(&key)?.service())
    }

    /// The word that publishes a service port's endpoints. No system call.
    pub(crate) fn published(&self, id: Id) -> BackendSet {
        BackendSet(self.sets.get(BackendSet::index(id, SetPolicy::ClusterIp)).unwrap_or_default())
    }

    /// Fails unless a set has exactly the endpoints that a service has, in the maps that are pinned now.
    pub(crate) fn check(&mut self, id: Id, service: &Service) -> Result<()> {
        self.follow()?;
        let set = self.published(id);
        let slots = set.base()..set.base() + set.count();
        let mut found: Vec<_> = slots
            .filter_map(|slot| self.backends.get(slot))
            .map(|slot| (Ipv4Addr::from(slot.addr.to_ne_bytes()), u16::from_be(slot.port)))
            .collect();
        let mut expected: Vec<_> =
            (0..service.endpoints).map(|number| (service.endpoint(number), TARGET_PORT)).collect();
        found.sort_unstable();
        expected.sort_unstable();
        ensure!(found == expected, "service {}: {found:?} is published, not {expected:?}", service.index);
        Ok(())
    }
}

fn pin(bpffs: &Path, map: &str) -> PathBuf {
    bpffs.join(Group::of(map).directory()).join(map)
}

/// Bytes of kernel memory that each pinned map takes, by name.
pub(crate) fn memory(bpffs: &Path) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let directories = Group::ALL.map(|group| fs::read_dir(bpffs.join(group.directory())));
    for pin in directories.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
        let pin = pin?;
        if pin.file_type()?.is_symlink() {
            continue;
        }
        let name = pin.file_name().to_string_lossy().into_owned();
        let map = MapData::from_pin(pin.path())?;
        let mut memory = memlock(map.fd().as_fd())?;
        if layout::maps::find(&name).is_some_and(|map| map.by_use().is_some()) {
            for slot in [CURRENT, PREVIOUS] {
                let inner = inner(map.fd().as_fd(), slot)?;
                memory += inner.map_or(Ok(0), |inner| memlock(inner.as_fd()))?;
            }
        }
        found.push((name, memory));
    }
    Ok(found)
}

/// Bytes of kernel memory that a map takes.
fn memlock(map: BorrowedFd<'_>) -> Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let memory = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock")?;
    Ok(memory.trim().parse()?)
}

/// An array map, mapped for reading.
///
/// Invariant: the mapping has `len` elements of plain data, each at a multiple of 8 bytes.
struct View<T> {
    mapping: MmapRaw,
    len: u32,
    value: PhantomData<T>,
}

impl<T: aya::Pod> View<T> {
    fn new(map: &MapData) -> Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let len = map.info()?.max_entries();
        let size = len as usize * size_of::<T>();
        let mapping = MmapOptions::new().len(size).map_raw_read_only(map.fd().as_fd().as_raw_fd())?;
        Ok(Self { mapping, len, value: PhantomData })
    }

    fn get(&self, index: u32) -> Option<T> {
        let at = self.mapping.as_ptr().cast::<T>().wrapping_add(index as usize);
        // SAFETY: within the mapping; volatile, because the agent writes it at any time.
        (index < self.len).then(|| unsafe { at.read_volatile() })
    }
}
