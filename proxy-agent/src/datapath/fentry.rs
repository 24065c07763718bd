//! The bpf(2) calls that attach programs to functions of other programs. aya attaches to the kernel's functions only.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya_obj::{btf::Btf, generated::bpf_insn};

use super::sys::{Attr, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_LOAD};

const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;

/// When an attached program runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttachType {
    /// When the function is called.
    Fentry = 24,
    /// When it returns.
    Fexit = 25,
}

/// A structure that the kernel fills, longer than any that is known.
#[repr(C, align(8))]
struct Info([u8; 256]);

impl Info {
    fn new() -> Self {
        Self([0; 256])
    }

    fn get(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_ne_bytes(bytes)
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn ask(&mut self, fd: BorrowedFd<'_>, size: usize) -> io::Result<()> {
        let at = self.0.as_mut_ptr() as u64;
        Attr::new().fd(0, fd).u32(4, size as u32).u64(8, at).call(BPF_OBJ_GET_INFO_BY_FD).map(drop)
    }
}

/// The functions of a program, by the ids of their types.
pub(super) fn functions(program: BorrowedFd<'_>) -> io::Result<BTreeSet<u32>> {
    // Of `bpf_prog_info`, up to and with `nr_func_info`; a record begins with offset and type.
    const SIZE: usize = 148;
    const RECORD_SIZE: usize = 132;
    const RECORDS: usize = 136;
    const COUNT: usize = 144;
    const TYPE: usize = 4;
    let mut info = Info::new();
    info.ask(program, SIZE)?;
    let (size, count) = (info.get(RECORD_SIZE), info.get(COUNT));
    if size < 8 || count == 0 {
        return Ok(BTreeSet::new());
    }
    let mut records = vec![0u8; size as usize * count as usize];
    let mut info = Info::new();
    info.set(RECORD_SIZE, &size.to_ne_bytes());
    info.set(RECORDS, &(records.as_mut_ptr() as u64).to_ne_bytes());
    info.set(COUNT, &count.to_ne_bytes());
    info.ask(program, SIZE)?;
    let id = |record: &[u8]| {
        let bytes = record.get(TYPE..TYPE + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    Ok(records.chunks(size as usize).filter_map(id).collect())
}

/// Types by the kernel's id.
pub(super) fn types(id: u32) -> Result<Btf> {
    // `bpf_btf_info`.
    const INFO_SIZE: usize = 16;
    const SIZE: usize = 8;
    let fd = Attr::new().u32(0, id).call_for_fd(BPF_BTF_GET_FD_BY_ID)?;
    let mut info = Info::new();
    info.ask(fd.as_fd(), INFO_SIZE)?;
    let size = info.get(SIZE);
    let mut bytes = vec![0u8; size as usize];
    let mut info = Info::new();
    info.set(0, &(bytes.as_mut_ptr() as u64).to_ne_bytes());
    info.set(SIZE, &size.to_ne_bytes());
    info.ask(fd.as_fd(), INFO_SIZE)?;
    Ok(Btf::parse(&bytes, Default::default())?)
}

/// Attaches a program to a function of another one, for as long as what is returned is open.
pub(super) fn attach(
    name: &str,
    code: &[bpf_insn],
    attach_type: AttachType,
    target: BorrowedFd<'_>,
    function: u32,
) -> Result<OwnedFd> {
    let program = load(name, code, attach_type, target, function)?;
    let link = Attr::new().fd(8, program.as_fd()).call_for_fd(BPF_RAW_TRACEPOINT_OPEN);
    link.with_context(|| {
        format!("the kernel attaches `{name}` to no program: on arm64 it takes 6.0, on x86-64 5.10 with its JIT compiler")
    })
}

fn load(
    name: &str,
    code: &[bpf_insn],
    attach_type: AttachType,
    target: BorrowedFd<'_>,
    function: u32,
) -> Result<OwnedFd> {
    const BPF_PROG_TYPE_TRACING: u32 = 26;
    const LOG: usize = 1 << 16;
    /// The verifier gives up with EAGAIN when a signal comes in between.
    const ATTEMPTS: usize = 8;
    let attr = || {
        Attr::new()
            .u32(0, BPF_PROG_TYPE_TRACING)
            .u32(4, code.len() as u32)
            .u64(8, code.as_ptr() as u64)
            .u64(16, c"Dual MIT/GPL".as_ptr() as u64)
            .u32(68, attach_type as u32)
            .u32(108, function)
            .fd(112, target)
    };
    let mut result = attr().call_for_fd(BPF_PROG_LOAD);
    for _ in 0..ATTEMPTS {
        match &result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                result = attr().call_for_fd(BPF_PROG_LOAD);
            }
            _ => break,
        }
    }
    let error = match result {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
        return Err(error).context("no permission to trace BPF programs: run as root, or with CAP_BPF and CAP_PERFMON");
    }
    // Once more, for the reason.
    let mut log = vec![0u8; LOG];
    let _ = attr().u32(24, 1).u32(28, LOG as u32).u64(32, log.as_mut_ptr() as u64).call_for_fd(BPF_PROG_LOAD);
    let log = String::from_utf8_lossy(&log);
    let log = log.trim_end_matches(['\0', '\n']);
    Err(anyhow!("{log}").context(error).context(format!("the kernel refuses the program `{name}`")))
}
