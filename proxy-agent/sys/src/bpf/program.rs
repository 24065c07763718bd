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
}

/// Loads a program of raw instructions, under the GPL. On failure, the second part of the error is the verifier's log.
///
/// # Errors
/// The kernel's.
pub fn load(program: Load<'_>) -> Result<OwnedFd, (io::Error, String)> {
    /// Of a name in the kernel, without the zero at its end.
    const NAME: usize = 15;
    let Load { kind, instructions, flags, attach_type, name } = program;
    let mut log = vec![0u8; 1 << 16];
    let mut attr = Attr::new()
        .u32(0, kind)
        .u32(4, instructions.len() as u32)
        .u64(8, instructions.as_ptr() as u64)
        .u64(16, c"GPL".as_ptr() as u64)
        .u32(24, 1)
        .u32(28, log.len() as u32)
        .u64(32, log.as_mut_ptr() as u64)
        .u32(44, flags)
        .bytes(48, &name.as_bytes()[..name.len().min(NAME)])
        .u32(68, attach_type);
    // SAFETY: instructions and log have the lengths that are given; the command returns a new descriptor.
    unsafe { attr.call_for_fd(Command::ProgLoad) }.map_err(|error| {
        let log = String::from_utf8_lossy(&log);
        (error, log.trim_end_matches('\0').to_owned())
    })
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
