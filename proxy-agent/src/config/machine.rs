//! The machine's properties that settings depend on, and the changes that settings make to it.

use anyhow::{Context as _, Result};

/// The machine that the agent runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub hostname: String,
    /// CPUs that are online. Not those this process is restricted to: the node's traffic is not.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    ///
    /// When the kernel does not return its name.
    pub fn this() -> Result<Self> {
        use nix::unistd::{SysconfVar, sysconf};
        let uname = nix::sys::utsname::uname().context("cannot read the host's name")?;
        let cpus = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
        Ok(Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            cpus: cpus.and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1),
            memory: nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total()),
        })
    }
}

/// Sets how early the kernel ends this process when memory runs out.
///
/// # Errors
///
/// When the kernel refuses: to lower the value takes CAP_SYS_RESOURCE.
pub fn set_oom_score_adj(score: i32) -> Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    std::fs::write(FILE, score.to_string()).with_context(|| format!("cannot write {score} to {FILE}"))
}
