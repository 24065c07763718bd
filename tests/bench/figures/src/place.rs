//! Where something is measured.

use std::{fs, io};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// The machine and its kernel: numbers of two places do not compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The processor's name, or "unknown processor".
    pub processor: String,
    /// Its CPUs.
    pub cpus: usize,
    /// Whether it is a virtual machine.
    pub is_virtual: bool,
    /// The release of the kernel.
    pub kernel: String,
}

impl Place {
    /// This machine.
    ///
    /// # Errors
    /// If proc is not there.
    pub fn here() -> io::Result<Self> {
        let info = fs::read_to_string("/proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            processor: model.map_or("unknown processor", |(_, name)| name).to_owned(),
            cpus: info.lines().filter(|line| line.starts_with("processor")).count(),
            is_virtual: info.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor")),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        })
    }
}

/// Keeps this thread, and threads and processes that it starts from now on, to one CPU, counted from zero.
///
/// # Errors
/// If the CPU does not exist.
pub fn pin(cpu: usize) -> nix::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
}
