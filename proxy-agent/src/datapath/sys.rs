//! The bpf(2) calls that aya has no interface for, and two other system calls. All `unsafe` of the agent is here and in
//! [`super::array`].

use std::{
    ffi::CString,
    io,
    marker::PhantomData,
    mem,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// A `bpf_attr`, zeroed up to the size of the largest one used here.
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

    fn fd(self, offset: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(offset, fd.as_raw_fd() as u32)
    }

    fn get_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_ne_bytes(bytes)
    }

    fn call(&mut self, command: libc::c_int) -> io::Result<i64> {
        // SAFETY: the attribute is zero where the caller said nothing; pointers in it outlive the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    fn call_for_fd(&mut self, command: libc::c_int) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: these commands return a new descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Pins a map, program or link.
pub(super) fn pin(fd: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let at = path(at)?;
    Attr::new().u64(0, at.as_ptr() as u64).fd(8, fd).call(BPF_OBJ_PIN).map(drop)
}

/// Opens what is pinned.
pub(super) fn open_pinned(at: &Path) -> io::Result<OwnedFd> {
    let at = path(at)?;
    Attr::new().u64(0, at.as_ptr() as u64).call_for_fd(BPF_OBJ_GET)
}

/// Attaches a program by a link. `target` is an interface index, or a descriptor as a number.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    Attr::new().fd(0, program).u32(4, target).u32(8, attach_type).u32(12, flags).call_for_fd(BPF_LINK_CREATE)
}

/// Replaces the program of a link, at once.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    Attr::new().fd(0, link).fd(4, program).call(BPF_LINK_UPDATE).map(drop)
}

/// Detaches a link at once: one whose last reference goes is detached some time later.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    Attr::new().fd(0, link).call(BPF_LINK_DETACH).map(drop)
}

/// What a link is attached to: the words of `bpf_link_info` behind the common part.
pub(super) struct LinkInfo {
    /// `bpf_link_info.prog_id`.
    pub(super) program_id: u32,
    /// `bpf_link_info.cgroup.cgroup_id`, for links of cgroups.
    pub(super) cgroup_id: u64,
    /// `bpf_link_info.{xdp,tcx}.ifindex`, for links of interfaces; 0 when the interface is gone.
    pub(super) ifindex: u32,
}

/// Asks a link what it is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    const PROGRAM: usize = 8;
    const TARGET: usize = 16;
    let mut info = Attr::new();
    Attr::new()
        .fd(0, link)
        .u32(4, info.0.len() as u32)
        .u64(8, info.0.as_mut_ptr() as u64)
        .call(BPF_OBJ_GET_INFO_BY_FD)?;
    let low = info.get_u32(TARGET);
    let cgroup_id = (info.get_u32(TARGET + 4) as u64) << 32 | low as u64;
    Ok(LinkInfo { program_id: info.get_u32(PROGRAM), cgroup_id, ifindex: low })
}

/// The programs at a hook of a cgroup, without those of the cgroups above.
pub(super) struct CgroupPrograms {
    /// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI` of whoever attached the first one; 0: no others may be attached.
    pub(super) flags: u32,
    /// The kernel's ids, in the order they run.
    pub(super) ids: Vec<u32>,
}

/// Reads which programs are at a hook of a cgroup.
pub(super) fn query_cgroup(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<CgroupPrograms> {
    const FLAGS: usize = 12;
    const COUNT: usize = 24;
    /// As many as the kernel allows (`BPF_CGROUP_MAX_PROGS`).
    const MAX: usize = 64;
    let mut ids = vec![0u32; MAX];
    let mut attr =
        Attr::new().fd(0, cgroup).u32(4, attach_type).u64(16, ids.as_mut_ptr() as u64).u32(COUNT, MAX as u32);
    attr.call(BPF_PROG_QUERY)?;
    ids.truncate(attr.get_u32(COUNT) as usize);
    Ok(CgroupPrograms { flags: attr.get_u32(FLAGS), ids })
}

/// A hash map, LRU or not: entries are looked at in batches, and looking at one is no use of it, so that an LRU map forgets
/// none the later for it.
///
/// Invariant: keys and values of the map have the sizes of these types.
pub(super) struct RawHash<K, V> {
    map: OwnedFd,
    max_entries: u32,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod, V: Pod> RawHash<K, V> {
    /// Opens a pinned map.
    ///
    /// # Errors
    /// The kernel's, and when keys or values have other sizes.
    pub(super) fn open_pinned(at: &Path) -> io::Result<Self> {
        Self::new(open_pinned(at)?)
    }

    fn new(map: OwnedFd) -> io::Result<Self> {
        let mut info = Attr::new();
        Attr::new()
            .fd(0, map.as_fd())
            .u32(4, info.0.len() as u32)
            .u64(8, info.0.as_mut_ptr() as u64)
            .call(BPF_OBJ_GET_INFO_BY_FD)?;
        // `bpf_map_info`.
        let (key, value, max_entries) = (info.get_u32(8), info.get_u32(12), info.get_u32(16));
        if (key as usize, value as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the map has another layout"));
        }
        Ok(Self { map, max_entries, types: PhantomData })
    }

    /// How many entries it has room for.
    pub(super) fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Looks an entry up.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        // SAFETY: all zero is a value of a plain type.
        let mut value: V = unsafe { mem::zeroed() };
        let result = Attr::new()
            .fd(0, self.map.as_fd())
            .u64(8, &raw const *key as u64)
            .u64(16, &raw mut value as u64)
            .call(BPF_MAP_LOOKUP_ELEM);
        Ok(present(result)?.map(|_| value))
    }

    /// Removes an entry; tells whether there was one.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let result =
            Attr::new().fd(0, self.map.as_fd()).u64(8, &raw const *key as u64).call(BPF_MAP_DELETE_ELEM);
        Ok(present(result)?.is_some())
    }

    /// Looks up as many entries as there is room for, from a position on; the beginning is `None`. Returns how many there
    /// are and the position behind them: `None` at the end.
    ///
    /// # Errors
    /// `ENOSPC` when there is not room for all entries of one bucket.
    pub(super) fn batch(
        &self,
        from: Option<u32>,
        keys: &mut [K],
        values: &mut [V],
    ) -> io::Result<(usize, Option<u32>)> {
        const COUNT: usize = 32;
        let (start, mut next) = (from.unwrap_or(0), 0u32);
        let mut attr = Attr::new()
            .u64(0, from.map_or(0, |_| &raw const start as u64))
            .u64(8, &raw mut next as u64)
            .u64(16, keys.as_mut_ptr() as u64)
            .u64(24, values.as_mut_ptr() as u64)
            .u32(COUNT, keys.len().min(values.len()) as u32)
            .fd(36, self.map.as_fd());
        let is_end = match attr.call(BPF_MAP_LOOKUP_BATCH) {
            Ok(_) => false,
            // With this error the kernel says that it came to the end, and the count holds.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        Ok((attr.get_u32(COUNT) as usize, (!is_end).then_some(next)))
    }

    /// All entries, a few thousand with each call.
    pub(super) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut room = 4096;
        // SAFETY: all zero is a value of a plain type.
        let (key, value): (K, V) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (mut entries, mut from) = (Vec::new(), None);
        loop {
            keys.resize(room, key);
            values.resize(room, value);
            let (count, next) = match self.batch(from, &mut keys, &mut values) {
                // A bucket with so many entries is hardly possible.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    room *= 2;
                    continue;
                }
                result => result?,
            };
            entries.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
            match next {
                Some(next) => from = Some(next),
                None => return Ok(entries),
            }
        }
    }

    /// A new LRU map, which nobody else has.
    #[cfg(test)]
    pub(super) fn new_lru(max_entries: u32) -> io::Result<Self> {
        const BPF_MAP_CREATE: libc::c_int = 0;
        const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
        let map = Attr::new()
            .u32(0, BPF_MAP_TYPE_LRU_HASH)
            .u32(4, size_of::<K>() as u32)
            .u32(8, size_of::<V>() as u32)
            .u32(12, max_entries)
            .call_for_fd(BPF_MAP_CREATE)?;
        Self::new(map)
    }

    /// Puts an entry in, or replaces the one with that key.
    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        Attr::new()
            .fd(0, self.map.as_fd())
            .u64(8, &raw const *key as u64)
            .u64(16, &raw const *value as u64)
            .call(BPF_MAP_UPDATE_ELEM)
            .map(drop)
    }
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes an element of an array of maps, if there is one.
pub(super) fn delete_element(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let result = Attr::new().fd(0, map).u64(8, &raw const index as u64).call(BPF_MAP_DELETE_ELEM);
    present(result).map(drop)
}

/// Reads a plain type from the beginning of bytes; `None` if there are too few.
pub(super) fn read<T: Pod>(bytes: &[u8]) -> Option<T> {
    let bytes = bytes.get(..size_of::<T>())?;
    // SAFETY: so many bytes are there, and any are a value of a plain type.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Runs a tc program once on a packet, which becomes what the program made of it, and returns its result.
pub(super) fn run_once(program: BorrowedFd<'_>, packet: &mut [u8]) -> io::Result<u32> {
    let (length, at) = (packet.len() as u32, packet.as_mut_ptr() as u64);
    let mut attr =
        Attr::new().fd(0, program).u32(8, length).u32(12, length).u64(16, at).u64(24, at).u32(32, 1);
    attr.call(BPF_PROG_TEST_RUN)?;
    Ok(attr.get_u32(4))
}

/// Does the kernel let socket address programs call a helper? Tries with a program of three instructions.
///
/// # Errors
/// When the kernel refuses for another reason than the helper.
pub(super) fn cgroup_sock_addr_has_helper(helper: u32) -> io::Result<bool> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
    const BPF_CGROUP_INET4_CONNECT: u32 = 10;
    const LOG: usize = 4096;
    // r1 = 0; call helper; r0 = 1; exit. The call's arguments are wrong, but an unknown helper is refused before that.
    let instructions: [u64; 4] =
        [0x0000_0000_0000_01b7, (helper as u64) << 32 | 0x85, 0x0000_0001_0000_00b7, 0x95];
    let mut log = vec![0u8; LOG];
    let result = Attr::new()
        .u32(0, BPF_PROG_TYPE_CGROUP_SOCK_ADDR)
        .u32(4, instructions.len() as u32)
        .u64(8, instructions.as_ptr() as u64)
        .u64(16, c"GPL".as_ptr() as u64)
        .u32(24, 1)
        .u32(28, LOG as u32)
        .u64(32, log.as_mut_ptr() as u64)
        .u32(68, BPF_CGROUP_INET4_CONNECT)
        .call_for_fd(BPF_PROG_LOAD);
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
        Err(_) => {
            // "unknown func bpf_x#1" up to 6.12, "program of this type cannot use helper" since.
            let log = String::from_utf8_lossy(&log);
            Ok(!log.contains("unknown func")
                && !log.contains("invalid func")
                && !log.contains("cannot use helper"))
        }
    }
}

/// Waits until every program that was running has ended: one RCU grace period.
///
/// # Errors
/// `EINVAL` on kernels with `nohz_full`.
pub(super) fn wait_for_readers() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The cookie of this thread's network namespace (kernel 5.14).
pub(crate) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // Any socket will do; this one takes no port and needs no interface.
    socket_option(std::os::unix::net::UnixDatagram::unbound()?.as_fd(), SO_NETNS_COOKIE)
}

/// The kernel's cookie of a socket.
pub(crate) fn socket_cookie(socket: &OwnedFd) -> io::Result<u64> {
    socket_option(socket.as_fd(), libc::SO_COOKIE)
}

/// A socket option of 64 bits.
fn socket_option(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<u64> {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let at = (&raw mut value).cast();
    // SAFETY: the buffer has the length that is given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, at, &mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A handle of a process (kernel 5.3).
pub(crate) fn open_process(id: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the call returns a new descriptor.
    unsafe { descriptor(libc::syscall(libc::SYS_pidfd_open, id, 0)) }
}

/// A copy of another process's descriptor (kernel 5.6).
pub(crate) fn take_descriptor(process: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: as above.
    unsafe { descriptor(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0)) }
}

/// # Safety
/// The result of a call that returns a new descriptor.
unsafe fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_zero_elsewhere() {
        let attr = Attr::new().u32(4, 7).u64(8, 9);
        assert_eq!((attr.get_u32(0), attr.get_u32(4), attr.get_u32(8), attr.get_u32(12)), (0, 7, 9, 0));
    }

    #[test]
    fn what_is_not_pinned_is_not_found() {
        let error = open_pinned(Path::new("/proc/self/no-such-pin")).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error}");
    }
}
