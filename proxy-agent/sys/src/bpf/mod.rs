//! bpf(2): attributes, and what is the same for maps, programs and links.

pub mod btf;
pub mod bytes;
pub mod link;
pub mod map;
pub mod program;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Commands, from the kernel's `include/uapi/linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "named as the kernel names them")]
pub enum Command {
    MapCreate = 0,
    MapLookupElem = 1,
    MapUpdateElem = 2,
    MapDeleteElem = 3,
    MapGetNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgGetNextId = 11,
    ProgGetFdById = 13,
    MapGetFdById = 14,
    ObjGetInfoByFd = 15,
    ProgQuery = 16,
    BtfLoad = 18,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// A `bpf_attr`: fields by their offset in bytes, zero where nothing was said. It has room for the largest command used here, and for
/// `bpf_prog_info`.
#[derive(Debug)]
#[repr(C, align(8))]
pub struct Attr([u8; 256]);

impl Default for Attr {
    fn default() -> Self {
        Self::new()
    }
}

impl Attr {
    /// All zero.
    pub fn new() -> Self {
        Self([0; 256])
    }

    /// Sets a field of 32 bits.
    #[must_use]
    pub fn u32(self, offset: usize, value: u32) -> Self {
        self.bytes(offset, &value.to_ne_bytes())
    }

    /// Sets a field of 64 bits: a pointer, mostly.
    #[must_use]
    pub fn u64(self, offset: usize, value: u64) -> Self {
        self.bytes(offset, &value.to_ne_bytes())
    }

    /// Sets a field that is a descriptor.
    #[must_use]
    pub fn fd(self, offset: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(offset, fd.as_raw_fd() as u32)
    }

    /// Sets a field of bytes.
    #[must_use]
    pub fn bytes(mut self, offset: usize, value: &[u8]) -> Self {
        self.0[offset..offset + value.len()].copy_from_slice(value);
        self
    }

    /// Sets the name of a map or program, as far as the kernel keeps it.
    #[must_use]
    fn name(self, offset: usize, name: &str) -> Self {
        /// Bytes, without the zero at its end (`BPF_OBJ_NAME_LEN`).
        const KEPT: usize = 15;
        self.bytes(offset, &name.as_bytes()[..name.len().min(KEPT)])
    }

    /// Reads a field of 32 bits, which the kernel may have written.
    pub fn get_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[offset..offset + 4]);
        u32::from_ne_bytes(bytes)
    }

    /// Makes the call, and returns its result.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Safety
    /// Pointers in the attribute point to memory that lives through the call and is as long as the command reads or writes.
    pub unsafe fn call(&mut self, command: Command) -> io::Result<i64> {
        // SAFETY: the attribute has the length that is given; the rest is the caller's promise.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command as libc::c_int, self.0.as_mut_ptr(), self.0.len())
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }

    /// The same for a command that returns a new descriptor.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Safety
    /// As for [`Self::call`], and the command is one of those.
    pub unsafe fn call_for_fd(&mut self, command: Command) -> io::Result<OwnedFd> {
        // SAFETY: the caller's promise.
        let fd = unsafe { self.call(command) }?;
        // SAFETY: the command returned a new descriptor, as the caller promised.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

/// Pins a map, program or link.
///
/// # Errors
/// The kernel's.
pub fn pin(fd: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let at = path(at)?;
    // SAFETY: the path ends with a zero and lives through the call.
    unsafe { Attr::new().u64(0, at.as_ptr() as u64).fd(8, fd).call(Command::ObjPin) }.map(drop)
}

/// Opens what is pinned.
///
/// # Errors
/// The kernel's.
pub fn open_pinned(at: &Path) -> io::Result<OwnedFd> {
    let at = path(at)?;
    // SAFETY: as above; the command returns a new descriptor.
    unsafe { Attr::new().u64(0, at.as_ptr() as u64).call_for_fd(Command::ObjGet) }
}

/// The kernel's information about a map, program or link: `bpf_map_info`, `bpf_prog_info`, `bpf_link_info`, as far as it fits.
fn info(fd: BorrowedFd<'_>) -> io::Result<Attr> {
    let mut info = Attr::new();
    let mut attr = Attr::new().fd(0, fd).u32(4, info.0.len() as u32).u64(8, info.0.as_mut_ptr() as u64);
    // SAFETY: the buffer has the length that is given.
    unsafe { attr.call(Command::ObjGetInfoByFd) }?;
    Ok(info)
}

fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// `None` where the kernel says that there is no such entry.
///
/// # Errors
/// All others.
pub fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
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
