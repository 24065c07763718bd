//! The few bpf(2) calls that tests need for programs of their own.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// `BPF_PROG_TYPE_SCHED_CLS`
pub(super) const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`
pub(super) const XDP: u32 = 6;

/// The start of `union bpf_attr` for BPF_MAP_CREATE (linux/bpf.h).
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The start of `union bpf_attr` for BPF_MAP_LOOKUP_ELEM.
#[repr(C)]
struct MapLookup {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
}

/// The start of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The start of `union bpf_attr` for BPF_OBJ_PIN.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The start of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Makes an array of one counter.
pub(super) fn create_counter() -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    let attributes = MapCreate { map_type: BPF_MAP_TYPE_ARRAY, key_size: 4, value_size: 8, max_entries: 1 };
    bpf_for_fd(BPF_MAP_CREATE, &attributes)
}

/// Reads it.
pub(super) fn read_counter(map: &OwnedFd) -> io::Result<u64> {
    const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
    let (key, mut value) = (0_u32, 0_u64);
    let attributes = MapLookup {
        map_fd: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw mut value) as u64,
    };
    bpf(BPF_MAP_LOOKUP_ELEM, &attributes)?;
    Ok(value)
}

/// Loads a program; 15 bytes of its name are kept.
pub(super) fn load(prog_type: u32, name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    let mut prog_name = [0; 16];
    prog_name.iter_mut().take(15).zip(name.bytes()).for_each(|(to, from)| *to = from);
    let attributes = ProgLoad {
        prog_type,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name,
    };
    bpf_for_fd(BPF_PROG_LOAD, &attributes)
}

/// Gives a program a name in the BPF file system.
pub(super) fn pin(program: &OwnedFd, path: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_int = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes =
        ObjPin { pathname: path.as_ptr() as u64, bpf_fd: program.as_raw_fd() as u32, file_flags: 0 };
    bpf(BPF_OBJ_PIN, &attributes).map(drop)
}

/// Attaches a program to an interface for as long as the link is open.
pub(super) fn attach(program: &OwnedFd, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    let attributes =
        LinkCreate { prog_fd: program.as_raw_fd() as u32, target_ifindex: ifindex, attach_type, flags };
    bpf_for_fd(BPF_LINK_CREATE, &attributes)
}

/// Detaches what a pinned link attached; the pin stays.
pub fn detach_link(pin: &Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link = bpf_for_fd(BPF_OBJ_GET, &ObjPin { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })?;
    bpf(BPF_LINK_DETACH, &(link.as_raw_fd() as u32)).map(drop)
}

fn bpf_for_fd<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the commands this is used for return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes by their size and only for the time of the call; what they point to is
    // alive and large enough, see where they are made.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
