//! The kernel programs, loaded, with maps that are filled from tables in memory.

use std::{
    borrow::Borrow,
    cell::RefCell,
    collections::HashMap as StdHashMap,
    env, fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::{ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use proxy_common::{
    V4, V6,
    decide::memory::MemoryTables,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::Alive,
        cidr::{Cidr, ServiceCidrs},
        config::names,
        counter::Counter,
        device::Device,
        flow::{Flow, FlowKey},
        fragment::{FragmentKey, FragmentPorts, Held, HeldKey},
        frontend::{Frontend, FrontendKey},
        id::Id,
        probe::{PROBED_CSUM_IPV6, PROBED_FIB_SRC},
        set::Set,
        source::Source,
    },
};

use super::{
    family::PacketFamily,
    sys::{self, Kind, Run},
};
use crate::lacks::Lack;

/// XDP programs of the object.
const XDP: [&str; 2] = ["uplink_xdp", "uplink_xdp_frags"];

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Entries of each map that services fill; of the array of their sets this is eight times the most that there can be.
    pub max_services: u32,
    /// Entries of each flow map.
    pub max_flows: u32,
    /// Let the programs use `BPF_F_IPV6`: needs 6.16.
    pub csum_ipv6: bool,
    /// Refuse TCP with resets.
    pub reject_with_reset: bool,
    /// Flows per second that may be opened without an answer; 0: no limit.
    pub max_new_flows: u32,
    /// Ask routes for the source address that they prefer: needs 6.7.
    pub fib_src: bool,
    /// How many ports there are for connections passed on.
    pub snat_ports: u16,
    /// Jiffies until a flow that is over gives its port away.
    pub idle: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_services: 4096,
            max_flows: 1 << 16,
            csum_ipv6: false,
            reject_with_reset: false,
            max_new_flows: 0,
            fib_src: false,
            snat_ports: 10_000,
            idle: 2_500,
        }
    }
}

/// The loaded object.
pub struct Kernel {
    /// Its maps are loaded, its programs as they are asked for: the verifier takes its time.
    ebpf: RefCell<Ebpf>,
}

impl Kernel {
    /// Loads the programs with the settings and contents of these tables.
    ///
    /// # Errors
    /// When there is no object, or the kernel refuses it.
    pub fn load(options: Options, v4: &MemoryTables<V4>, v6: &MemoryTables<V6>) -> Result<Self> {
        let settings = v4.settings;
        let (external, csum) = (settings.external_cluster_ips as u8, options.csum_ipv6 as u8);
        let fib_src = options.fib_src as u8;
        let (removed, reject) = (settings.reset_removed_tcp as u8, options.reject_with_reset as u8);
        let mut loader = EbpfLoader::new();
        // A log of every instruction would take longer than the check; without any, aya's second try is an error.
        loader.btf(None).verifier_log_level(VerifierLogLevel::STATS);
        for name in [
            "sets",
            "alive",
            "frontends_v4",
            "frontends_v6",
            "backends_v4",
            "backends_v6",
            "sources_v4",
            "sources_v6",
        ] {
            loader.map_max_entries(name, options.max_services);
        }
        for name in ["flows_v4", "flows_v6"] {
            loader.map_max_entries(name, options.max_flows);
        }
        loader
            .override_global(names::SNAT_FIRST, &settings.snat_first, true)
            .override_global(names::SNAT_LAST, &settings.snat_last, true)
            .override_global(names::NODEPORT_FIRST, &settings.nodeport_first, true)
            .override_global(names::NODEPORT_LAST, &settings.nodeport_last, true)
            .override_global(names::IDLE, &settings.idle, true)
            .override_global(names::EXTERNAL_CLUSTER_IPS, &external, true)
            .override_global(names::RESET_REMOVED_TCP, &removed, true)
            .override_global(names::REJECT_WITH_RESET, &reject, true)
            .override_global(names::NEW_FLOWS, &options.max_new_flows, true)
            .override_global(names::HAS_FIB_SRC, &fib_src, true)
            .override_global(names::HAS_CSUM_IPV6, &csum, true);
        let path = object()?;
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        let ebpf = loader.load(&bytes).context("cannot load the kernel programs")?;
        let mut kernel = Self { ebpf: RefCell::new(ebpf) };
        kernel.install(v4)?;
        kernel.install(v6)?;
        Ok(kernel)
    }

    /// Writes what the agent would write. Elements of arrays that these tables lack stay as they are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn install<F: PacketFamily>(&mut self, tables: &MemoryTables<F>) -> Result<()> {
        self.put_all("sets", tables.sets.iter().map(|(index, set)| (*index, *set)))?;
        self.put_all(&family_map::<F>("backends"), (0..).zip(tables.backends.iter().copied()))?;
        let mut alive =
            self.read_array::<Alive>("alive", tables.alive.iter().map(|id| Alive::position(*id).0))?;
        let mut roles = StdHashMap::<Id, u8>::new();
        for (member, role) in &tables.members {
            *roles.entry(*member).or_default() |= role;
        }
        for id in &tables.alive {
            let entry = Alive::entry(*id, roles.get(id).copied().unwrap_or(0));
            let (element, half) = Alive::position(*id);
            let word = alive.entry(element).or_default();
            word.0 = word.0 & !(0xffff << (16 * half)) | (entry as u64) << (16 * half);
        }
        self.put_all("alive", alive.into_iter())?;
        let timeouts = tables.affinity_timeouts.iter();
        self.put_all(
            "sets",
            timeouts.map(|(service, timeout)| (Set::affinity_index(*service), Set((*timeout).into()))),
        )?;
        self.put_sources(tables)?;
        self.put_service_addresses(tables)?;
        let elements = tables.filter.iter().map(|mark| mark.element);
        let mut words = self.read_array::<u64>("vip_filter", elements)?;
        for mark in &tables.filter {
            *words.entry(mark.element).or_default() |= mark.mask;
        }
        self.put_all("vip_filter", words.into_iter())?;
        let frontends = tables.frontends.iter().map(|(key, target)| (*key, Frontend::new(*key, *target)));
        self.put_hash::<FrontendKey<F>, Frontend<F>>(&family_map::<F>("frontends"), frontends)?;
        self.put_hash::<u32, Device>(
            "devices",
            tables.devices.iter().map(|(index, device)| (*index, *device)),
        )?;
        let addresses = tables.node_addresses.iter().map(|(addr, uses)| (*addr, uses.0));
        self.put_hash::<F::Addr, u32>(&family_map::<F>("node_addrs"), addresses)
    }

    fn put_sources<F: PacketFamily>(&mut self, tables: &MemoryTables<F>) -> Result<()> {
        let map = family_map::<F>("sources");
        let mut trie: LpmTrie<&mut MapData, Source<F>, u32> =
            self.ebpf.get_mut().map_mut(&map).with_context(|| map.clone())?.try_into()?;
        for (service, addr) in &tables.sources {
            let whole = 8 * size_of::<Source<F>>() as u32;
            trie.insert(&Key::new(whole, Source { service: *service, addr: *addr }), 1, 0)
                .with_context(|| map.clone())?;
        }
        Ok(())
    }

    /// The map has ranges, the tables addresses one by one.
    fn put_service_addresses<F: PacketFamily>(&mut self, tables: &MemoryTables<F>) -> Result<()> {
        let mut cidrs = ServiceCidrs::<F>::default();
        anyhow::ensure!(tables.service_addresses.len() <= cidrs.0.len(), "too many service addresses");
        for (cidr, addr) in cidrs.0.iter_mut().zip(&tables.service_addresses) {
            *cidr = Cidr { base: *addr, mask: F::ONES };
        }
        self.put_all(&family_map::<F>("service_cidrs"), [(0, cidrs)].into_iter())
    }

    fn put_all<V: Pod>(&mut self, map: &str, elements: impl Iterator<Item = (u32, V)>) -> Result<()> {
        let mut array: Array<&mut MapData, V> =
            self.ebpf.get_mut().map_mut(map).with_context(|| map.to_owned())?.try_into()?;
        for (index, value) in elements {
            array.set(index, value, 0).with_context(|| format!("{map} at {index}"))?;
        }
        Ok(())
    }

    fn read_array<V: Pod>(
        &self,
        map: &str,
        indices: impl Iterator<Item = u32>,
    ) -> Result<StdHashMap<u32, V>> {
        let ebpf = self.ebpf.borrow();
        let array: Array<&MapData, V> = ebpf.map(map).with_context(|| map.to_owned())?.try_into()?;
        indices.map(|index| Ok((index, array.get(&index, 0)?))).collect()
    }

    fn put_hash<K: Pod, V: Pod>(&mut self, map: &str, entries: impl Iterator<Item = (K, V)>) -> Result<()> {
        let mut hash: HashMap<&mut MapData, K, V> =
            self.ebpf.get_mut().map_mut(map).with_context(|| map.to_owned())?.try_into()?;
        for (key, value) in entries {
            hash.insert(key.borrow(), value.borrow(), 0).with_context(|| map.to_owned())?;
        }
        Ok(())
    }

    /// Marks a backend as serving in the sets it is in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn revive<F: PacketFamily>(&mut self, backend: Id, tables: &MemoryTables<F>) -> Result<()> {
        let (element, half) = Alive::position(backend);
        let mut alive = self.read_array::<Alive>("alive", std::iter::once(element))?;
        let roles = tables.members.iter().filter(|(member, _)| *member == backend);
        let entry = Alive::entry(backend, roles.fold(0, |roles, (_, role)| roles | role));
        let word = alive.entry(element).or_default();
        word.0 = word.0 & !(0xffff << (16 * half)) | (entry as u64) << (16 * half);
        self.put_all("alive", alive.into_iter())
    }

    /// Marks a backend as gone.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bury(&mut self, backend: Id) -> Result<()> {
        let (element, half) = Alive::position(backend);
        let mut alive = self.read_array::<Alive>("alive", std::iter::once(element))?;
        let word = alive.entry(element).or_default();
        word.0 &= !(0xffff << (16 * half));
        self.put_all("alive", alive.into_iter())
    }

    /// The flow entries of a family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flows<F: PacketFamily>(&self) -> Result<StdHashMap<FlowKey<F>, Flow<F>>> {
        let map = family_map::<F>("flows");
        let ebpf = self.ebpf.borrow();
        let hash: HashMap<&MapData, FlowKey<F>, Flow<F>> =
            ebpf.map(&map).with_context(|| map.clone())?.try_into()?;
        Ok(hash.iter().collect::<Result<_, _>>()?)
    }

    /// Removes the flow entries of a family for which the condition does not hold.
    ///
    /// # Errors
    /// The kernel's.
    pub fn retain_flows<F: PacketFamily>(&mut self, keep: impl Fn(&FlowKey<F>) -> bool) -> Result<()> {
        let keys: Vec<_> = self.flows::<F>()?.into_keys().filter(|key| !keep(key)).collect();
        let map = family_map::<F>("flows");
        let mut hash: HashMap<&mut MapData, FlowKey<F>, Flow<F>> =
            self.ebpf.get_mut().map_mut(&map).with_context(|| map.clone())?.try_into()?;
        for key in keys {
            hash.remove(&key)?;
        }
        Ok(())
    }

    /// One flow entry.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flow<F: PacketFamily>(&self, key: &FlowKey<F>) -> Result<Option<Flow<F>>> {
        let map = family_map::<F>("flows");
        let ebpf = self.ebpf.borrow();
        let hash: HashMap<&MapData, FlowKey<F>, Flow<F>> =
            ebpf.map(&map).with_context(|| map.clone())?.try_into()?;
        match hash.get(key, 0) {
            Ok(flow) => Ok(Some(flow)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets so many jiffies pass for all flow entries.
    ///
    /// # Errors
    /// The kernel's.
    pub fn age_flows<F: PacketFamily>(&mut self, jiffies: u32) -> Result<()> {
        let aged = self
            .flows::<F>()?
            .into_iter()
            .map(|(key, flow)| (key, Flow { last_seen: flow.last_seen.wrapping_sub(jiffies), ..flow }));
        self.put_hash(&family_map::<F>("flows"), aged)
    }

    /// Changes all flow entries of a family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change_flows<F: PacketFamily>(&mut self, change: impl Fn(&mut Flow<F>)) -> Result<()> {
        let mut flows = self.flows::<F>()?;
        flows.values_mut().for_each(change);
        self.put_hash(&family_map::<F>("flows"), flows.into_iter())
    }

    /// The affinity entries of a family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn affinity<F: PacketFamily>(&self) -> Result<StdHashMap<AffinityKey<F>, Affinity<F>>> {
        let map = family_map::<F>("affinity");
        let ebpf = self.ebpf.borrow();
        let hash: HashMap<&MapData, AffinityKey<F>, Affinity<F>> =
            ebpf.map(&map).with_context(|| map.clone())?.try_into()?;
        Ok(hash.iter().collect::<Result<_, _>>()?)
    }

    /// Removes all that the programs remember of clients of a family.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget_clients<F: PacketFamily>(&mut self) -> Result<()> {
        self.retain_flows::<F>(|_| false)?;
        let map = family_map::<F>("fragments");
        let mut fragments: HashMap<&mut MapData, FragmentKey<F>, FragmentPorts> =
            self.ebpf.get_mut().map_mut(&map).with_context(|| map.clone())?.try_into()?;
        let keys: Vec<_> = fragments.keys().collect::<Result<_, _>>()?;
        for key in keys {
            fragments.remove(&key)?;
        }
        let map = family_map::<F>("held");
        let mut held: HashMap<&mut MapData, HeldKey<F>, Held> =
            self.ebpf.get_mut().map_mut(&map).with_context(|| map.clone())?.try_into()?;
        let keys: Vec<_> = held.keys().collect::<Result<_, _>>()?;
        for key in keys {
            held.remove(&key)?;
        }
        let keys: Vec<_> = self.affinity::<F>()?.into_keys().collect();
        let map = family_map::<F>("affinity");
        let mut hash: HashMap<&mut MapData, AffinityKey<F>, Affinity<F>> =
            self.ebpf.get_mut().map_mut(&map).with_context(|| map.clone())?.try_into()?;
        for key in keys {
            hash.remove(&key)?;
        }
        Ok(())
    }

    /// What a counter stands at, on all CPUs together.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let ebpf = self.ebpf.borrow();
        let counters: PerCpuArray<&MapData, u64> = ebpf.map("counters").context("counters")?.try_into()?;
        Ok(counters.get(&(counter as u32), 0)?.iter().sum())
    }

    /// Runs a program of this name.
    ///
    /// # Errors
    /// The kernel's; a [`Lack`] where it cannot run this program for a test at all.
    pub fn run(&self, program: &str, packet: &[u8], ifindex: u32, flags: u32) -> Result<Run> {
        let kind = Self::kind(program);
        if kind == Kind::Xdp && Lack::XdpTestDevice.is_here()? {
            return Err(Lack::XdpTestDevice.into());
        }
        let run = sys::run(self.program(program)?.as_fd(), kind, packet, ifindex, 1, flags, 0);
        run.with_context(|| format!("{program} on {} bytes", packet.len()))
    }

    /// Runs a tc program on a packet that a device is to cut into pieces with so many bytes of payload.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run_on_segments(&self, program: &str, packet: &[u8], ifindex: u32, segment: u32) -> Result<Run> {
        let run = sys::run(self.program(program)?.as_fd(), Kind::Tc, packet, ifindex, 1, 0, segment);
        run.with_context(|| format!("{program} on {} bytes", packet.len()))
    }

    /// Those of some programs that can be run for a test; says which cannot.
    ///
    /// # Errors
    /// When the kernel's release cannot be read.
    pub fn possible<'a>(&self, programs: &[&'a str]) -> Result<Vec<&'a str>> {
        let mut possible = programs.to_vec();
        if Lack::XdpTestDevice.is_here()? {
            possible.retain(|program| Self::kind(program) != Kind::Xdp);
        }
        if possible.len() < programs.len() {
            Lack::XdpTestDevice.note();
        }
        Ok(possible)
    }

    /// Does this kernel know `BPF_F_IPV6`?
    ///
    /// # Errors
    /// The kernel's.
    pub fn knows_csum_ipv6(&self) -> Result<bool> {
        Ok(self.probed()? & PROBED_CSUM_IPV6 != 0)
    }

    /// Does this kernel tell the source address that a route prefers?
    ///
    /// # Errors
    /// The kernel's.
    pub fn knows_fib_src(&self) -> Result<bool> {
        Ok(self.probed()? & PROBED_FIB_SRC != 0)
    }

    fn probed(&self) -> Result<u32> {
        let mut packet = [0; 128];
        packet[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        Ok(self.run("probe", &packet, 0, 0)?.result)
    }

    /// The type of the program of this name.
    pub fn kind(program: &str) -> Kind {
        if XDP.contains(&program) { Kind::Xdp } else { Kind::Tc }
    }

    /// The program of this name, loaded now if it was not.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses it.
    pub fn program(&self, name: &str) -> Result<OwnedFd> {
        if name.ends_with("_frags") && Lack::XdpFrags.is_here()? {
            return Err(Lack::XdpFrags.into());
        }
        let mut ebpf = self.ebpf.borrow_mut();
        let program = ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?;
        let fd: &ProgramFd = match Self::kind(name) {
            Kind::Tc => {
                let program: &mut SchedClassifier = program.try_into()?;
                if program.fd().is_err() {
                    patiently(|| program.load()).with_context(|| name.to_owned())?;
                }
                program.fd()?
            }
            Kind::Xdp => {
                let program: &mut Xdp = program.try_into()?;
                if program.fd().is_err() {
                    patiently(|| program.load()).with_context(|| name.to_owned())?;
                }
                program.fd()?
            }
        };
        Ok(fd.as_fd().try_clone_to_owned()?)
    }
}

/// The verifier gives up with EAGAIN when a signal comes in meanwhile; it need only be asked again.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const LIMIT: Duration = Duration::from_secs(20);
    let start = Instant::now();
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < LIMIT =>
            {
                thread::yield_now();
            }
            result => return result,
        }
    }
}

fn family_map<F: PacketFamily>(name: &str) -> String {
    format!("{name}_v{}", F::NUMBER)
}

/// The object that `cargo xtask build` made: in `PROXY_AGENT_BPF_DIR`, or in a target directory.
fn object() -> Result<PathBuf> {
    const NAME: &str = "proxy-agent.bpf.o";
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")?;
    let target = env::var_os("CARGO_TARGET_DIR").map(|dir| workspace.join(dir).join("bpf"));
    let dirs =
        [env::var_os("PROXY_AGENT_BPF_DIR").map(PathBuf::from), target, Some(workspace.join("target/bpf"))];
    let found = dirs.into_iter().flatten().map(|dir| dir.join(NAME)).find(|path| path.is_file());
    found
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        .context("no kernel programs: run `cargo xtask build`")
}
