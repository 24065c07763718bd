//! The kernel programs, loaded, with maps that are filled from tables in memory.

use std::{
    env, fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    EbpfLoader, VerifierLogLevel,
    maps::{MapData, PerCpuArray},
    programs::{ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use proxy_common::{
    V4, V6,
    decide::memory::MemoryTables,
    layout::{
        config::Constants,
        counter::Counter,
        maps::{Definition, Most},
        probe::{PROBED_CSUM_IPV6, PROBED_FIB_SRC},
    },
};

use super::{
    by_use::ByUse,
    pool::{self, Loaded, Object},
    sys::{self, Around, Kind, Run},
};
use proxy_harness::{kernel_capabilities::MissingCapability, workspace};

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
    /// Entries of each map of unconfirmed flows.
    pub max_pending: u32,
    /// Ask routes for the source address that they prefer: needs 6.7.
    pub fib_src: bool,
    /// How many ports there are for forwarded connections.
    pub snat_ports: u16,
    /// Jiffies until an ended flow releases its port.
    pub idle: u32,
}

impl Options {
    /// Those of most tests.
    pub const DEFAULT: Self = Self {
        max_services: 4096,
        max_flows: 1 << 16,
        csum_ipv6: false,
        reject_with_reset: false,
        max_pending: 1 << 16,
        fib_src: false,
        snat_ports: 10_000,
        idle: 2_500,
    };
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The loaded object.
pub struct Kernel {
    /// Its maps are loaded, its programs on first use: the verifier takes its time.
    loaded: Loaded,
}

impl Kernel {
    /// Loads the programs with the settings and contents of these tables, or takes those that a test before loaded so.
    ///
    /// # Errors
    /// When the object is missing, or the kernel refuses it.
    pub fn load(options: Options, v4: &MemoryTables<V4>, v6: &MemoryTables<V6>) -> Result<Self> {
        let how = format!("{options:?} {:?} {:?}", v4.settings, v6.settings);
        let mut kernel = Self { loaded: pool::lease(&how, || load(options, v4, v6))? };
        kernel.install(v4)?;
        kernel.install(v6)?;
        Ok(kernel)
    }

    pub(super) fn object(&self) -> MutexGuard<'_, Object> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to replace the maps that grow by use, as the agent does.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enlarge_maps(&mut self) -> Result<()> {
        let mut object = self.object();
        let Object { ebpf, by_use } = &mut *object;
        by_use.enlarge(ebpf)
    }

    /// The value of a counter, on all CPUs together.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let object = self.object();
        let counters: PerCpuArray<&MapData, u64> = object.map("counters").context("counters")?.try_into()?;
        Ok(counters.get(&(counter as u32), 0)?.iter().sum())
    }

    /// Runs a program of this name.
    ///
    /// # Errors
    /// The kernel's; a [`MissingCapability`] where it cannot run this program for a test at all.
    pub fn run(&self, program: &str, packet: &[u8], ifindex: u32, flags: u32) -> Result<Run> {
        self.run_around(program, packet, Around { ifindex, flags, ..Around::default() })
    }

    /// Runs a tc program on a packet that a device is to cut into pieces with so many bytes of payload.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run_on_segments(&self, program: &str, packet: &[u8], ifindex: u32, segment: u32) -> Result<Run> {
        self.run_around(program, packet, Around { ifindex, segment, ..Around::default() })
    }

    /// Runs a tc program on a packet that leaves by a device and came in by another.
    ///
    /// # Errors
    /// The kernel's; a [`MissingCapability`] if the ingress device cannot be set.
    pub fn run_leaving(&self, program: &str, packet: &[u8], ifindex: u32, came_in: u32) -> Result<Run> {
        let run = self.run_around(program, packet, Around { ifindex, came_in, ..Around::default() });
        run.map_err(|error| match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            Some(libc::EINVAL) => MissingCapability::TestIngress.into(),
            _ => error,
        })
    }

    /// Runs a program of this name on a packet of which so much is known.
    ///
    /// # Errors
    /// The kernel's; a [`MissingCapability`] where it cannot run this program for a test at all.
    pub fn run_around(&self, program: &str, packet: &[u8], around: Around) -> Result<Run> {
        let kind = Self::kind(program);
        if kind == Kind::Xdp && MissingCapability::XdpTestDevice.is_here()? {
            return Err(MissingCapability::XdpTestDevice.into());
        }
        let run = sys::run(self.program(program)?.as_fd(), kind, packet, around, 1);
        run.with_context(|| format!("{program} on {} bytes", packet.len()))
    }

    /// The given programs that can run in a test; prints the others.
    ///
    /// # Errors
    /// When the kernel's release cannot be read.
    pub fn possible<'a>(&self, programs: &[&'a str]) -> Result<Vec<&'a str>> {
        let mut possible = programs.to_vec();
        if MissingCapability::XdpTestDevice.is_here()? {
            possible.retain(|program| Self::kind(program) != Kind::Xdp);
        }
        if possible.len() < programs.len() {
            MissingCapability::XdpTestDevice.note();
        }
        Ok(possible)
    }

    /// Whether this kernel knows `BPF_F_IPV6`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn knows_csum_ipv6(&self) -> Result<bool> {
        Ok(self.probed()? & PROBED_CSUM_IPV6 != 0)
    }

    /// Whether this kernel takes the ingress device of a packet.
    ///
    /// # Errors
    /// The kernel's.
    pub fn takes_ingress(&self) -> Result<bool> {
        const ANY: u32 = 1;
        match self.run_leaving("probe", &[0; 128], 0, ANY) {
            Ok(_) => Ok(true),
            Err(error) if error.is::<MissingCapability>() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether this kernel reports the source address that a route prefers.
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
        if name.ends_with("_frags") && MissingCapability::XdpFrags.is_here()? {
            return Err(MissingCapability::XdpFrags.into());
        }
        let mut object = self.object();
        let program = object.ebpf.program_mut(name).with_context(|| format!("no program `{name}`"))?;
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

fn load(options: Options, v4: &MemoryTables<V4>, v6: &MemoryTables<V6>) -> Result<Object> {
    let settings = v4.settings;
    let constants = Constants {
        snat_first: settings.snat_first,
        snat_last: settings.snat_last,
        idle: settings.idle,
        snat_sources: [v4.settings, v6.settings].map(|settings| settings.snat_sources),
        external_cluster_ips: settings.external_cluster_ips,
        reset_removed_tcp: settings.reset_removed_tcp,
        reject_with_reset: options.reject_with_reset,
        has_fib_src: options.fib_src,
        has_csum_ipv6: options.csum_ipv6,
        ..Constants::default()
    }
    .encode();
    let mut loader = EbpfLoader::new();
    // A log of every instruction would take longer than the check; without any, aya's second try is an error.
    loader.btf(None).verifier_log_level(VerifierLogLevel::STATS);
    for name in [
        "backend_sets",
        "backend_states",
        "frontends_v4",
        "frontends_v6",
        "backends_v4",
        "backends_v6",
        "source_ranges_v4",
        "source_ranges_v6",
    ] {
        loader.map_max_entries(name, options.max_services);
    }
    for (name, value) in &constants {
        loader.override_global(name, value.as_bytes(), true);
    }
    let path = object_path()?;
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let ebpf = loader.load(&bytes).context("cannot load the kernel programs")?;
    let entries = |map: &Definition| match map.by_use().map(|size| size.most) {
        Some(Most::Flows) => options.max_flows,
        Some(Most::PendingFlows) => options.max_pending,
        Some(Most::Entries(_)) | None => 1024,
    };
    let by_use = ByUse::new(&ebpf, &bytes, entries)?;
    Ok(Object { ebpf, by_use })
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

/// The object that `cargo xtask build` made: in `PROXY_AGENT_BPF_DIR`, or in a target directory.
fn object_path() -> Result<PathBuf> {
    const NAME: &str = "proxy-agent.bpf.o";
    let workspace = workspace();
    let target = env::var_os("CARGO_TARGET_DIR").map(|dir| workspace.join(dir).join("bpf"));
    let dirs =
        [env::var_os("PROXY_AGENT_BPF_DIR").map(PathBuf::from), target, Some(workspace.join("target/bpf"))];
    let found = dirs.into_iter().flatten().map(|dir| dir.join(NAME)).find(|path| path.is_file());
    found
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        .context("no kernel programs: run `cargo xtask build`")
}
