//! The compiled programs inside this binary, and this kernel's support for them.

use std::{
    collections::BTreeSet,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapInfo},
    programs::{CgroupSockAddr, Program, ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use aya_ebpf_helpers::{
    BPF_FUNC_GET_CURRENT_COMM, BPF_FUNC_GET_CURRENT_PID_TGID, BPF_FUNC_SET_RETVAL, BPF_FUNC_SK_STORAGE_GET,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_common::layout::{
    config::Constants,
    maps,
    probe::{PROBED_CSUM_IPV6, PROBED_FIB_SRC},
};
use proxy_sys::{bpf::program, socket::netns_cookie};
use tracing::{debug, info, warn};

use super::{
    denied::explain_load,
    locked_memory,
    object_config::{ObjectConfig, log_level},
    pins::Pins,
    room::{Room, growing_maps},
    sizes::map_sizes,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PROXY_AGENT_BPF_OBJECT"));
static LOGGING_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("PROXY_AGENT_BPF_OBJECT_LOG"));

/// Helper numbers, from the kernel's `include/uapi/linux/bpf.h`.
mod aya_ebpf_helpers {
    pub(super) const BPF_FUNC_GET_CURRENT_PID_TGID: u32 = 14;
    pub(super) const BPF_FUNC_GET_CURRENT_COMM: u32 = 16;
    pub(super) const BPF_FUNC_SK_STORAGE_GET: u32 = 107;
    pub(super) const BPF_FUNC_SET_RETVAL: u32 = 187;
}

/// Features that a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `bpf_set_retval` (5.18): rejected sockets see ECONNREFUSED instead of EPERM.
    pub set_retval: bool,
    /// Socket storage in socket address programs: connected sockets never forget their VIP.
    pub sk_storage: bool,
    /// `BPF_F_IPV6` in checksum updates (6.16).
    pub csum_ipv6: bool,
    /// The source address that a route prefers, from the FIB look-up (6.7).
    pub fib_src: bool,
    /// TCX links (6.6) instead of clsact filters.
    pub tcx: bool,
}

/// The loaded object: all maps, and programs as they are requested.
pub(super) struct Object {
    ebpf: Ebpf,
    pub(super) features: Features,
}

impl Object {
    /// Loads the maps, reusing pinned ones, and probes the kernel's features.
    pub(super) fn load(config: &ObjectConfig, pins: &Pins) -> Result<Self> {
        // Only when a program is refused: the log then has the refused path, not all of them.
        Self::load_with_log(config, pins, VerifierLogLevel::DEBUG)
    }

    fn load_with_log(config: &ObjectConfig, pins: &Pins, log: VerifierLogLevel) -> Result<Self> {
        Self::load_maps(config, pins, log, &[], None)
    }

    /// Once more, with some larger maps, which `pins` have elsewhere, and the programs of these names.
    pub(super) fn load_larger(
        config: &ObjectConfig,
        pins: &Pins,
        larger: &[(&'static str, u32)],
        features: Features,
        programs: &[String],
    ) -> Result<Self> {
        let mut object = Self::load_maps(config, pins, VerifierLogLevel::DEBUG, larger, Some(features))?;
        for program in programs {
            object.program(program)?;
        }
        Ok(object)
    }

    fn load_maps(
        config: &ObjectConfig,
        pins: &Pins,
        log: VerifierLogLevel,
        larger: &[(&'static str, u32)],
        known: Option<Features>,
    ) -> Result<Self> {
        // Before anything is made: not only the library makes maps.
        locked_memory::raise();
        let bytes = if config.kernel_log.is_some() { LOGGING_OBJECT } else { OBJECT };
        if bytes.is_empty() {
            bail!("this binary was built without its kernel programs: build it with `cargo xtask build`");
        }
        // One loader for both: making one reads all of the kernel's types.
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        let features = match known {
            Some(features) => features,
            None => find_features(&mut loader, bytes)?,
        };

        let mut sizes = map_sizes(config, &Room::for_pinned_ids(pins));
        for (name, wanted) in sizes.iter().filter(|(name, _)| !growing_maps().any(|grows| grows == *name)) {
            if let Ok(pinned) = MapInfo::from_pin(pins.map(name))
                && pinned.max_entries() != *wanted
            {
                info!(
                    "the map `{name}` keeps its {} entries instead of {wanted}: connections live in it (`cleanup` drops it)",
                    pinned.max_entries()
                );
            }
        }
        // The last size that is given counts.
        sizes.extend_from_slice(larger);
        let paths: Vec<_> = maps::all().map(|map| (map.name, pins.map(map.name))).collect();
        let has_current =
            [BPF_FUNC_GET_CURRENT_PID_TGID, BPF_FUNC_GET_CURRENT_COMM].into_iter().all(has_helper);
        let node_netns = netns_cookie().unwrap_or_else(|error| {
            info!(
                "the kernel does not identify network namespaces ({error}): assuming the machine's first one"
            );
            0
        });
        let constants = Constants {
            node_netns,
            has_set_retval: features.set_retval,
            has_sk_storage: features.sk_storage,
            has_csum_ipv6: features.csum_ipv6,
            has_fib_src: features.fib_src,
            has_current,
            ..config.constants()
        }
        .encode();
        let level = config.kernel_log.map_or(0u8, log_level);

        loader.verifier_log_level(log);
        for (name, entries) in &sizes {
            loader.map_max_entries(name, *entries);
        }
        for (name, path) in &paths {
            loader.map_pin_path(name, path);
        }
        for (name, value) in &constants {
            loader.override_global(name, value.as_bytes(), true);
        }
        loader.override_global("AYA_LOG_LEVEL", &level, config.kernel_log.is_some());
        let ebpf = loader.load(bytes).map_err(explain_load)?;
        Ok(Self { ebpf, features })
    }

    /// The loaded object's maps and programs, for calls of aya.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// The kernel's ids of the programs that are loaded.
    pub(super) fn program_ids(&self) -> BTreeSet<u32> {
        self.ebpf.programs().filter_map(|(_, program)| Some(program.info().ok()?.id())).collect()
    }

    /// Names of the programs that are loaded.
    pub(super) fn loaded(&self) -> Vec<String> {
        let loaded = self.ebpf.programs().filter(|(_, program)| program.info().is_ok());
        loaded.map(|(name, _)| name.to_owned()).collect()
    }

    /// The kernel's id of a map that the agent fills.
    pub(super) fn map_id(&self, name: &str) -> Option<u32> {
        match self.ebpf.map(name)? {
            Map::Array(map) | Map::HashMap(map) => map.info().ok().map(|info| info.id()),
            _ => None,
        }
    }

    /// The kernel's id of a program; none if it is not loaded.
    pub(super) fn program_id(&self, name: &str) -> Option<u32> {
        self.ebpf.program(name)?.info().ok().map(|info| info.id())
    }

    /// Loads every program. Returns by name how many instructions the verifier processed.
    pub(super) fn load_all(config: &ObjectConfig, pins: &Pins) -> Result<Vec<(String, Result<u32>)>> {
        let mut object = Self::load(config, pins)?;
        // A second loader, for kernels before 5.16, which report the number in the log alone.
        let mut logging = None;
        let names: Vec<String> = object.ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        let mut verified = |name: &str| -> Result<u32> {
            object.program(name)?;
            let program = object.ebpf.program(name).context("no such program")?;
            if let Some(count) = program.info()?.verified_instruction_count() {
                return Ok(count);
            }
            if logging.is_none() {
                logging = Some(Self::load_with_log(config, pins, VerifierLogLevel::STATS)?);
            }
            count_by_log(|| logging.as_mut().context("no object")?.program(name).map(drop))
        };
        Ok(names.into_iter().map(|name| (name.clone(), verified(&name))).collect())
    }

    /// The program of that name, loaded now if it was not.
    pub(super) fn program(&mut self, name: &str) -> Result<ProgramFd> {
        let program =
            self.ebpf.program_mut(name).with_context(|| format!("program `{name}` does not exist"))?;
        let context = || format!("the kernel refuses the program `{name}`");
        match program {
            Program::SchedClassifier(program) => load(program.fd().is_ok(), || program.load()),
            Program::Xdp(program) => load(program.fd().is_ok(), || program.load()),
            Program::CgroupSockAddr(program) => load(program.fd().is_ok(), || program.load()),
            _ => bail!("`{name}` is not a program of ours"),
        }
        .with_context(context)?;
        let fd = match program {
            Program::SchedClassifier(program) => SchedClassifier::fd(program)?,
            Program::Xdp(program) => Xdp::fd(program)?,
            Program::CgroupSockAddr(program) => CgroupSockAddr::fd(program)?,
            _ => bail!("`{name}` is not a program of ours"),
        };
        Ok(fd.try_clone()?)
    }
}

/// Loads a program that is not loaded. The verifier gives up with EAGAIN when a signal comes in between: then once more.
fn load(loaded: bool, mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    if loaded {
        return Ok(());
    }
    let started = Instant::now();
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && started.elapsed() < PATIENCE => {}
            result => return result,
        }
    }
}

/// How many instructions the verifier goes through for a program that it takes. The library returns the log only if
/// loading fails; so it is made to fail, after the verifier, for want of a file descriptor.
fn count_by_log(load: impl FnOnce() -> Result<()>) -> Result<u32> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let result = load();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let error = result.err().context("a program was loaded without a file descriptor")?;
    let Some(ProgramError::LoadError { verifier_log, .. }) = error.downcast_ref() else { return Err(error) };
    // "processed 1234 insns (limit 1000000) max_states_per_insn ..."
    let log = verifier_log.to_string();
    let count = log.split_once("processed ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    count.with_context(|| format!("the verifier reported no number of instructions: {log}"))
}

fn find_features(loader: &mut EbpfLoader<'_>, bytes: &[u8]) -> Result<Features> {
    let probed = probe(loader, bytes)?;
    let features = Features {
        set_retval: has_helper(BPF_FUNC_SET_RETVAL),
        sk_storage: has_helper(BPF_FUNC_SK_STORAGE_GET),
        csum_ipv6: probed & PROBED_CSUM_IPV6 != 0,
        fib_src: probed & PROBED_FIB_SRC != 0,
        tcx: aya::util::KernelVersion::current()
            .is_ok_and(|version| version >= aya::util::KernelVersion::new(6, 6, 0)),
    };
    debug!(?features, "kernel features");
    Ok(features)
}

fn has_helper(helper: u32) -> bool {
    program::cgroup_sock_addr_has_helper(helper).unwrap_or_else(|error| {
        warn!("cannot find out whether the kernel has helper {helper}: {error}; assuming not");
        false
    })
}

/// Runs the probe program, in a separate object that is dropped afterwards. Returns `PROBED_*` bits.
fn probe(loader: &mut EbpfLoader<'_>, bytes: &[u8]) -> Result<u32> {
    let mut ebpf = loader.load(bytes).map_err(explain_load)?;
    let program: &mut SchedClassifier =
        ebpf.program_mut("probe").context("the object has no probe program")?.try_into()?;
    program.load().context("the kernel refuses even the probe program")?;
    let mut packet = [0u8; 128];
    packet[12..14].copy_from_slice(&[0x86, 0xdd]);
    packet[14] = 0x60;
    program::run_once(program.fd()?.as_fd(), &mut packet).context("cannot run the probe program")
}

#[cfg(test)]
mod tests;
