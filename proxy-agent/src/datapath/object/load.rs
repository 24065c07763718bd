//! Loads linked programs into the kernel.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_sys::bpf::program::{self, Load, Log, Types};

use super::{image::Linked, parallel::in_parallel};

/// The kernel refuses a program.
#[derive(Debug, thiserror::Error)]
#[error("{error}; the verifier's log: {log}")]
pub(super) struct LoadError {
    #[source]
    pub(super) error: io::Error,
    pub(super) log: String,
}

/// Loads a program.
pub(super) fn load(program: &Linked, types: Option<BorrowedFd<'_>>) -> Result<OwnedFd, LoadError> {
    load_with_log(program, types, Log::Path)
}

/// The verifier fails with EAGAIN when a signal interrupts it: then once more.
fn load_with_log(program: &Linked, types: Option<BorrowedFd<'_>>, log: Log) -> Result<OwnedFd, LoadError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let Linked { name, kind, flags, attach_type, instructions, functions, lines } = program;
    let types = types.map(|types| Types { types, functions, lines });
    let request =
        Load { kind: *kind, instructions, flags: *flags, attach_type: *attach_type, name, types, log };
    let started = Instant::now();
    loop {
        match program::load(request) {
            Err((error, _)) if error.raw_os_error() == Some(libc::EAGAIN) && started.elapsed() < PATIENCE => {
            }
            result => return result.map_err(|(error, log)| LoadError { error, log }),
        }
    }
}

/// Loads programs in parallel: the verifier takes most of the time. Returns the programs that the kernel accepts.
pub(super) fn load_all(mut programs: Vec<Linked>, types: Option<BorrowedFd<'_>>) -> Vec<(String, OwnedFd)> {
    // The long ones begin first, so that those that are loaded last are short.
    programs.sort_by_key(|program| program.instructions.len());
    let load = |program: Linked| load(&program, types).ok().map(|fd| (program.name, fd));
    in_parallel(programs, 0, load).into_iter().flatten().collect()
}

/// How many instructions the verifier goes through for a program that it takes, on kernels before 5.16, which report it in the log alone.
/// The log is returned only if loading fails; so it is made to fail, after the verifier, for want of a file descriptor.
pub(super) fn count_by_log(program: &Linked, types: Option<BorrowedFd<'_>>) -> Result<u32> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let result = load_with_log(program, types, Log::Counts);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    let LoadError { log, .. } = result.err().context("a program was loaded without a file descriptor")?;
    // "processed 1234 insns (limit 1000000) max_states_per_insn ..."
    let count = log.split_once("processed ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    count.with_context(|| format!("the verifier reported no number of instructions: {log}"))
}
