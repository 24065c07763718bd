//! Programs.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{Attr, Command, info, present};

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
pub const XDP: u32 = 6;
/// `BPF_PROG_TYPE_CGROUP_SOCK`.
pub const CGROUP_SOCK: u32 = 9;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
pub const CGROUP_SOCK_ADDR: u32 = 18;

/// A program to load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load<'a> {
    /// Its type.
    pub kind: u32,
    /// Its instructions.
    pub instructions: &'a [u64],
    /// `bpf_attr.prog_flags`.
    pub flags: u32,
    /// `bpf_attr.expected_attach_type`.
    pub attach_type: u32,
    /// 15 bytes of its name are kept.
    pub name: &'a str,
    /// Types of its functions.
    pub types: Option<Types<'a>>,
    /// The verifier's log, if it refuses the program.
    pub log: Log,
}

/// Types of a program's functions.
#[derive(Clone, Copy, Debug)]
pub struct Types<'a> {
    /// What [`super::btf::load`] returned.
    pub types: BorrowedFd<'a>,
    /// A `bpf_func_info` for each function.
    pub functions: &'a [u8],
    /// A `bpf_line_info` for each line: the verifier's log quotes the source by these.
    pub lines: &'a [u8],
}

/// Contents of the verifier's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Log {
    /// The path to the instruction that it refuses (`BPF_LOG_LEVEL1`).
    #[default]
    Path = 1,
    /// How many instructions it processed (`BPF_LOG_STATS`).
    Counts = 4,
}

/// Loads a program of raw instructions, under the GPL. On failure, the second part of the error is the verifier's log, for which the program is
/// loaded once more.
///
/// # Errors
/// The kernel's.
pub fn load(program: Load<'_>) -> Result<OwnedFd, (io::Error, String)> {
    const SHORTEST: usize = 1 << 16;
    const LONGEST: usize = 1 << 24;
    let mut log = Vec::new();
    loop {
        match load_once(&program, &mut log) {
            Ok(fd) => return Ok(fd),
            // A signal interrupted the verifier: nothing is wrong with the program.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => return Err((error, String::new())),
            // The log did not fit.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && log.len() < LONGEST => {
                log = vec![0; (log.len() * 8).clamp(SHORTEST, LONGEST)];
            }
            Err(_) if log.is_empty() => log = vec![0; SHORTEST],
            Err(error) => {
                let log = String::from_utf8_lossy(&log);
                return Err((error, log.trim_end_matches('\0').to_owned()));
            }
        }
    }
}

fn load_once(program: &Load<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    const FUNCTION: usize = 8;
    const LINE: usize = 16;
    let Load { kind, instructions, flags, attach_type, name, types, log: level } = *program;
    let mut attr = Attr::new()
        .u32(0, kind)
        .u32(4, instructions.len() as u32)
        .u64(8, instructions.as_ptr() as u64)
        .u64(16, c"GPL".as_ptr() as u64)
        .u32(44, flags)
        .name(48, name)
        .u32(68, attach_type);
    if !log.is_empty() {
        attr = attr.u32(24, level as u32).u32(28, log.len() as u32).u64(32, log.as_mut_ptr() as u64);
    }
    if let Some(Types { types, functions, lines }) = types {
        attr = attr.fd(72, types);
        if !functions.is_empty() {
            let count = (functions.len() / FUNCTION) as u32;
            attr = attr.u32(76, FUNCTION as u32).u64(80, functions.as_ptr() as u64).u32(88, count);
        }
        if !lines.is_empty() {
            let count = (lines.len() / LINE) as u32;
            attr = attr.u32(92, LINE as u32).u64(96, lines.as_ptr() as u64).u32(104, count);
        }
    }
    // SAFETY: instructions, log and records have the lengths that are given; the command returns a new descriptor.
    unsafe { attr.call_for_fd(Command::ProgLoad) }
}

/// Does the kernel let socket address programs call a helper? Tries with a program of three instructions.
///
/// # Errors
/// When the kernel refuses for another reason than the helper.
pub fn cgroup_sock_addr_has_helper(helper: u32) -> io::Result<bool> {
    const BPF_CGROUP_INET4_CONNECT: u32 = 10;
    // r1 = 0; call helper; r0 = 1; exit. The call's arguments are wrong, but an unknown helper is refused before that.
    let instructions = [0x0000_0000_0000_01b7, u64::from(helper) << 32 | 0x85, 0x0000_0001_0000_00b7, 0x95];
    let program = Load {
        kind: CGROUP_SOCK_ADDR,
        instructions: &instructions,
        attach_type: BPF_CGROUP_INET4_CONNECT,
        ..Load::default()
    };
    match load(program) {
        Ok(_) => Ok(true),
        Err((error, _)) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
        // "unknown func bpf_x#1" up to 6.12, "program of this type cannot use helper" since.
        Err((_, log)) => Ok(!log.contains("unknown func")
            && !log.contains("invalid func")
            && !log.contains("cannot use helper")),
    }
}

/// Runs a tc program once on a packet, which becomes what the program made of it, and returns its result.
///
/// # Errors
/// The kernel's.
pub fn run_once(program: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<u32> {
    let (length, at) = (packet.len() as u32, packet.as_mut_ptr() as u64);
    let mut attr =
        Attr::new().fd(0, program).u32(8, length).u32(12, length).u64(16, at).u64(24, at).u32(32, 1);
    // SAFETY: both buffers are the packet, of which the length is given.
    unsafe { attr.call(Command::ProgTestRun) }?;
    Ok(attr.get_u32(4))
}

/// A test run of a program (`BPF_PROG_TEST_RUN`).
#[derive(Debug)]
pub struct TestRun<'a> {
    /// The packet.
    pub packet: &'a [u8],
    /// `__sk_buff` or `xdp_md`, up to the fields that may be set.
    pub context: &'a [u32],
    /// Room for the packet as the program leaves it; not with live frames.
    pub out: &'a mut [u8],
    /// How often.
    pub repeat: u32,
    /// `bpf_attr.test.flags`.
    pub flags: u32,
}

/// What a test run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// What the program returned.
    pub result: u32,
    /// How many bytes the packet has now.
    pub length: usize,
    /// Nanoseconds per repetition, as the kernel measured them.
    pub nanoseconds: u32,
}

/// Runs a program on a packet.
///
/// # Errors
/// The kernel's. Frames shorter than an Ethernet header are refused by the kernel itself.
pub fn test_run(program: BorrowedFd<'_>, run: TestRun<'_>) -> io::Result<TestResult> {
    let TestRun { packet, context, out, repeat, flags } = run;
    let mut attr = Attr::new()
        .fd(0, program)
        .u32(8, packet.len() as u32)
        .u32(12, out.len() as u32)
        .u64(16, packet.as_ptr() as u64)
        .u64(24, if out.is_empty() { 0 } else { out.as_mut_ptr() as u64 })
        .u32(32, repeat)
        .u32(40, size_of_val(context) as u32)
        .u64(48, context.as_ptr() as u64)
        .u32(64, flags);
    // SAFETY: all three buffers have the lengths that are given.
    unsafe { attr.call(Command::ProgTestRun) }?;
    Ok(TestResult {
        result: attr.get_u32(4),
        length: attr.get_u32(12) as usize,
        nanoseconds: attr.get_u32(36),
    })
}

/// Opens a program by its id.
///
/// # Errors
/// The kernel's.
pub fn by_id(id: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the command returns a new descriptor.
    unsafe { Attr::new().u32(0, id).call_for_fd(Command::ProgGetFdById) }
}

/// The next id after this one; `None` behind the last.
///
/// # Errors
/// The kernel's.
pub fn next_id(after: u32) -> io::Result<Option<u32>> {
    let mut attr = Attr::new().u32(0, after);
    // SAFETY: no pointers.
    let result = unsafe { attr.call(Command::ProgGetNextId) };
    Ok(present(result)?.map(|_| attr.get_u32(4)))
}

/// The kernel's information about a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// The kernel's id.
    pub id: u32,
    /// How many instructions the verifier processed; 0 on kernels before 5.16.
    pub verified_instructions: u32,
}

/// Asks a program what it is.
///
/// # Errors
/// The kernel's.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let info = info(program)?;
    Ok(ProgramInfo { id: info.get_u32(4), verified_instructions: info.get_u32(216) })
}

/// A program's name, as the kernel cuts it: `bpf_prog_info.name`.
///
/// # Errors
/// The kernel's.
pub fn name(program: BorrowedFd<'_>) -> io::Result<String> {
    const NAME: usize = 64;
    const WORDS: usize = 4;
    let info = info(program)?;
    let bytes = (0..WORDS).flat_map(|word| info.get_u32(NAME + 4 * word).to_ne_bytes());
    Ok(String::from_utf8_lossy(&bytes.take_while(|byte| *byte != 0).collect::<Vec<_>>()).into_owned())
}
