//! The bpf(2) calls that packet tests and benchmarks need and aya does not have in this form.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// A program's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `BPF_PROG_TYPE_SCHED_CLS`
    Tc,
    /// `BPF_PROG_TYPE_XDP`
    Xdp,
}

/// What a test run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// What the program returned.
    pub result: u32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Nanoseconds per repetition, as the kernel measured them.
    pub nanoseconds: u32,
}

/// Checks the sum of the whole packet, as a network card would have told it, after a tc program; 5.10 does not know it.
pub const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// A `bpf_attr` of words at byte offsets.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn get(&self, offset: usize) -> u32 {
        let bytes = &self.0[offset..offset + 4];
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn call(&mut self, command: libc::c_int) -> io::Result<i64> {
        // SAFETY: the attribute is zero where nothing was set; what its pointers point to outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    fn call_for_fd(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the commands this is called with return a new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

/// What a test run says of the packet besides its bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    /// Index of the device it is at; 0: no particular one.
    pub ifindex: u32,
    /// At tc, for what leaves: index of the device by which it came in; 0: it is the node's own.
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
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    const GSO_SIZE: usize = 44;
    let mut out = vec![0u8; packet.len() + 256];
    // `__sk_buff` and `xdp_md`, up to the fields that may be set.
    let mut context = [0u32; 48];
    let size = match kind {
        Kind::Tc => {
            context[9] = around.came_in;
            context[10] = around.ifindex;
            context[GSO_SIZE] = around.segment;
            size_of_val(&context)
        }
        Kind::Xdp => {
            context[1] = packet.len() as u32;
            context[3] = around.ifindex;
            24
        }
    };
    let mut attr = Attr::new()
        .u32(0, program.as_raw_fd() as u32)
        .u32(8, packet.len() as u32)
        .u32(12, out.len() as u32)
        .u64(16, packet.as_ptr() as u64)
        .u64(24, out.as_mut_ptr() as u64)
        .u32(32, repeat)
        .u32(40, size as u32)
        .u64(48, context.as_ptr() as u64)
        .u32(64, around.flags);
    attr.call(BPF_PROG_TEST_RUN)?;
    out.truncate(attr.get(12) as usize);
    Ok(Run { result: attr.get(4), packet: out, nanoseconds: attr.get(36) })
}

/// Runs an XDP program on copies of a frame, and does with them what it says, as if the device with index `ifindex` of
/// this network namespace had received them.
///
/// # Errors
/// The kernel's.
pub fn run_live(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32, repeat: u32) -> io::Result<()> {
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;
    // `xdp_md`: where the frame ends, and the device it came in by.
    let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
    Attr::new()
        .u32(0, program.as_raw_fd() as u32)
        .u32(8, frame.len() as u32)
        .u64(16, frame.as_ptr() as u64)
        .u32(32, repeat)
        .u32(40, size_of_val(&context) as u32)
        .u64(48, context.as_ptr() as u64)
        .u32(64, BPF_F_TEST_XDP_LIVE_FRAMES)
        .call(BPF_PROG_TEST_RUN)
        .map(drop)
}

/// The program of a pinned link, if the link is one of XDP.
///
/// # Errors
/// The kernel's.
pub fn xdp_of_link(pin: &Path) -> io::Result<Option<OwnedFd>> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    const BPF_LINK_TYPE_XDP: u32 = 6;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link = Attr::new().u64(0, path.as_ptr() as u64).call_for_fd(BPF_OBJ_GET)?;
    // The start of `bpf_link_info`: type, link, program.
    let mut info = [0u32; 4];
    Attr::new()
        .u32(0, link.as_raw_fd() as u32)
        .u32(4, size_of_val(&info) as u32)
        .u64(8, info.as_mut_ptr() as u64)
        .call(BPF_OBJ_GET_INFO_BY_FD)?;
    if info[0] != BPF_LINK_TYPE_XDP {
        return Ok(None);
    }
    Attr::new().u32(0, info[2]).call_for_fd(BPF_PROG_GET_FD_BY_ID).map(Some)
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
    const BPF_PROG_LOAD: libc::c_int = 5;
    let mut log = vec![0u8; 1 << 16];
    const BPF_XDP: u32 = 37;
    // The attach type must be that of the programs it calls (6.17), and aya names it for XDP.
    let (kind, attach_type) = match kind {
        Kind::Tc => (3, 0),
        Kind::Xdp => (6, BPF_XDP),
    };
    let loaded = Attr::new()
        .u32(0, kind)
        .u32(4, instructions.len() as u32)
        .u64(8, instructions.as_ptr() as u64)
        .u64(16, c"GPL".as_ptr() as u64)
        .u32(24, 1)
        .u32(28, log.len() as u32)
        .u64(32, log.as_mut_ptr() as u64)
        .u32(44, flags)
        .u32(68, attach_type)
        .call_for_fd(BPF_PROG_LOAD);
    loaded.map_err(|error| {
        let log = String::from_utf8_lossy(&log);
        io::Error::new(error.kind(), format!("{error}: {}", log.trim_end_matches('\0')))
    })
}

/// Types of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`
    Array = 2,
    /// `BPF_MAP_TYPE_PROG_ARRAY`
    ProgramArray = 3,
    /// `BPF_MAP_TYPE_LRU_HASH`
    LruHash = 9,
}

/// Makes a map with keys and values of so many bytes, and room for so many entries.
///
/// # Errors
/// The kernel's.
pub fn create_map(kind: MapKind, key: usize, value: usize, max_entries: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    let (key, value) = (key as u32, value as u32);
    Attr::new().u32(0, kind as u32).u32(4, key).u32(8, value).u32(12, max_entries).call_for_fd(BPF_MAP_CREATE)
}

/// Makes an array of programs with one element, which is this program.
///
/// # Errors
/// The kernel's.
pub fn program_array(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
    let map = create_map(MapKind::ProgramArray, 4, 4, 1)?;
    let (key, value) = (0u32, program.as_raw_fd() as u32);
    Attr::new()
        .u32(0, map.as_raw_fd() as u32)
        .u64(8, &raw const key as u64)
        .u64(16, &raw const value as u64)
        .call(BPF_MAP_UPDATE_ELEM)?;
    Ok(map)
}

/// The key of a map, so many bytes long, that comes after this one, or the first.
///
/// # Errors
/// The kernel's.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, size: usize) -> io::Result<Option<Vec<u8>>> {
    const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
    let mut next = vec![0u8; size];
    let mut attr = Attr::new()
        .u32(0, map.as_raw_fd() as u32)
        .u64(8, key.map_or(0, |key| key.as_ptr() as u64))
        .u64(16, next.as_mut_ptr() as u64);
    match attr.call(BPF_MAP_GET_NEXT_KEY) {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes an entry of a map.
///
/// # Errors
/// The kernel's.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
    let mut attr = Attr::new().u32(0, map.as_raw_fd() as u32).u64(8, key.as_ptr() as u64);
    attr.call(BPF_MAP_DELETE_ELEM).map(drop)
}

/// Writes an element of an array; of one per CPU, the values of all CPUs.
///
/// # Errors
/// The kernel's.
pub fn update(map: BorrowedFd<'_>, index: u32, value: &[u8]) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
    Attr::new()
        .u32(0, map.as_raw_fd() as u32)
        .u64(8, &raw const index as u64)
        .u64(16, value.as_ptr() as u64)
        .call(BPF_MAP_UPDATE_ELEM)
        .map(drop)
}

/// Sets all elements of an array, so many bytes long, to zero.
///
/// # Errors
/// The kernel's.
pub fn zero_all(map: BorrowedFd<'_>, elements: u32, size: usize) -> io::Result<()> {
    const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
    let keys: Vec<u32> = (0..elements).collect();
    let values = vec![0u8; elements as usize * size.next_multiple_of(8)];
    Attr::new()
        .u64(16, keys.as_ptr() as u64)
        .u64(24, values.as_ptr() as u64)
        .u32(32, elements)
        .u32(36, map.as_raw_fd() as u32)
        .call(BPF_MAP_UPDATE_BATCH)
        .map(drop)
}
