//! Test runs of programs, and the calls of bpf(2) that packet tests and benchmarks need besides.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

pub use proxy_sys::bpf::map::{MapKind, create as create_map};
use proxy_sys::bpf::{
    Attr, Command,
    link::{KIND_XDP, link_info},
    map, open_pinned, present,
    program::{self, Load, TestResult, TestRun},
};

/// A program's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `BPF_PROG_TYPE_SCHED_CLS`
    Tc,
    /// `BPF_PROG_TYPE_XDP`
    Xdp,
}

/// The result of a test run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The program's return code.
    pub result: u32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Nanoseconds per repetition, as the kernel measured them.
    pub nanoseconds: u32,
}

/// Verifies CHECKSUM_COMPLETE over the whole packet, as a network card would set it, after a tc program; 5.10 does not know it.
pub const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// The context that a test run passes besides the packet's bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    /// Index of the device it is at; 0: no particular one.
    pub ifindex: u32,
    /// At tc, for egress: index of the device by which it came in; 0: it is the node's own.
    pub came_in: u32,
    /// Flags of the command.
    pub flags: u32,
    /// At tc: a device is to cut the packet into pieces with so many bytes of payload; 0: it is not.
    pub segment: u32,
}

/// At a device, and nothing else.
pub fn at(ifindex: u32) -> Around {
    Around { ifindex, ..Around::default() }
}

/// Runs a program on a packet so many times.
///
/// # Errors
/// The kernel's. Frames shorter than an Ethernet header are refused by the kernel itself.
pub fn run(
    program: BorrowedFd<'_>,
    kind: Kind,
    packet: &[u8],
    around: Around,
    repeat: u32,
) -> io::Result<Run> {
    const GSO_SIZE: usize = 44;
    let mut out = vec![0u8; packet.len() + 256];
    // `__sk_buff` and `xdp_md`, up to the fields that may be set.
    let mut context = [0u32; 48];
    let context = match kind {
        Kind::Tc => {
            context[9] = around.came_in;
            context[10] = around.ifindex;
            context[GSO_SIZE] = around.segment;
            &context[..]
        }
        Kind::Xdp => {
            context[1] = packet.len() as u32;
            context[3] = around.ifindex;
            &context[..6]
        }
    };
    let run = TestRun { packet, context, out: &mut out, repeat, flags: around.flags };
    let TestResult { result, length, nanoseconds } = program::test_run(program, run)?;
    out.truncate(length);
    Ok(Run { result, packet: out, nanoseconds })
}

/// Runs an XDP program on copies of a frame, and applies its verdicts, as if the device with index `ifindex` of this
/// network namespace had received them.
///
/// # Errors
/// The kernel's.
pub fn run_live(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32, repeat: u32) -> io::Result<()> {
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
    // `xdp_md`: where the frame ends, and the device it came in by.
    let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
    let flags = BPF_F_TEST_XDP_LIVE_FRAMES;
    let run = TestRun { packet: frame, context: &context, out: &mut [], repeat, flags };
    program::test_run(program, run).map(drop)
}

/// The program of a pinned link, if the link is one of XDP.
///
/// # Errors
/// The kernel's.
pub fn xdp_of_link(pin: &Path) -> io::Result<Option<OwnedFd>> {
    let info = link_info(open_pinned(pin)?.as_fd())?;
    (info.kind == KIND_XDP).then(|| program::by_id(info.program_id)).transpose()
}

/// Loads a program of raw instructions.
///
/// # Errors
/// The kernel's; the verifier's log goes into the message.
pub fn load(kind: Kind, instructions: &[u64]) -> io::Result<OwnedFd> {
    load_with(kind, instructions, 0)
}

/// `BPF_F_XDP_HAS_FRAGS`, for programs that call others that have it.
pub const XDP_HAS_FRAGS: u32 = 1 << 5;

/// The same with flags of `BPF_PROG_LOAD`.
///
/// # Errors
/// The kernel's.
pub fn load_with(kind: Kind, instructions: &[u64], flags: u32) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    // The attach type must be that of the programs it calls (6.17), and aya names it for XDP.
    let (kind, attach_type) = match kind {
        Kind::Tc => (program::SCHED_CLS, 0),
        Kind::Xdp => (program::XDP, BPF_XDP),
    };
    program::load(Load { kind, instructions, flags, attach_type, ..Load::default() })
        .map_err(|(error, log)| io::Error::new(error.kind(), format!("{error}: {log}")))
}

/// Makes an array of programs with one element, which is this program.
///
/// # Errors
/// The kernel's.
pub fn program_array(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = create_map(MapKind::ProgramArray, 4, 4, 1)?;
    map::set_program(map.as_fd(), program)?;
    Ok(map)
}

/// The key of a map, so many bytes long, that comes after this one, or the first.
///
/// # Errors
/// The kernel's.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, size: usize) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0u8; size];
    let mut attr = Attr::new()
        .fd(0, map)
        .u64(8, key.map_or(0, |key| key.as_ptr() as u64))
        .u64(16, next.as_mut_ptr() as u64);
    // SAFETY: callers pass the length of the map's keys.
    let result = unsafe { attr.call(Command::MapGetNextKey) };
    Ok(present(result)?.map(|_| next))
}

/// Removes an entry of a map.
///
/// # Errors
/// The kernel's.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).u64(8, key.as_ptr() as u64);
    // SAFETY: callers give keys of the map.
    unsafe { attr.call(Command::MapDeleteElem) }.map(drop)
}

/// Writes an element of an array; of one per CPU, the values of all CPUs.
///
/// # Errors
/// The kernel's.
pub fn update(map: BorrowedFd<'_>, index: u32, value: &[u8]) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).u64(8, &raw const index as u64).u64(16, value.as_ptr() as u64);
    // SAFETY: callers give values of the map.
    unsafe { attr.call(Command::MapUpdateElem) }.map(drop)
}

/// Sets all elements of an array, so many bytes long, to zero.
///
/// # Errors
/// The kernel's.
pub fn zero_all(map: BorrowedFd<'_>, elements: u32, size: usize) -> io::Result<()> {
    let keys: Vec<u32> = (0..elements).collect();
    let values = vec![0u8; elements as usize * size.next_multiple_of(8)];
    let mut attr = Attr::new()
        .u64(16, keys.as_ptr() as u64)
        .u64(24, values.as_ptr() as u64)
        .u32(32, elements)
        .fd(36, map);
    // SAFETY: there are as many keys and values as are named.
    unsafe { attr.call(Command::MapUpdateBatch) }.map(drop)
}
