//! Maps.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{Attr, Command, btf::MapTypes, info, present};

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
pub fn create(kind: MapKind, key: usize, value: usize, max_entries: u32) -> io::Result<OwnedFd> {
    let (key_size, value_size) = (key as u32, value as u32);
    NewMap { kind: kind as u32, key_size, value_size, max_entries, ..NewMap::default() }.create()
}

/// A map to make.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewMap<'a> {
    /// `bpf_attr.map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many entries it has room for.
    pub max_entries: u32,
    /// `bpf_attr.map_flags`.
    pub flags: u32,
    /// For a map of maps: a map like its elements.
    pub inner: Option<BorrowedFd<'a>>,
    /// 15 bytes of its name are kept.
    pub name: &'a str,
    /// Types of keys and values.
    pub types: Option<MapTypes<'a>>,
}

impl NewMap<'_> {
    /// Makes the map.
    ///
    /// # Errors
    /// The kernel's.
    pub fn create(&self) -> io::Result<OwnedFd> {
        let Self { kind, key_size, value_size, max_entries, flags, inner, name, types } = *self;
        let mut attr = Attr::new()
            .u32(0, kind)
            .u32(4, key_size)
            .u32(8, value_size)
            .u32(12, max_entries)
            .u32(16, flags)
            .name(28, name);
        if let Some(inner) = inner {
            attr = attr.fd(20, inner);
        }
        if let Some(MapTypes { types, key, value }) = types {
            attr = attr.fd(48, types).u32(52, key).u32(56, value);
        }
        // SAFETY: no pointers; the command returns a new descriptor.
        unsafe { attr.call_for_fd(Command::MapCreate) }
    }
}

/// Writes the one element of an array.
///
/// # Errors
/// The kernel's; also when the value has another length than the array's.
pub fn set_value(array: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    if map_info(array)?.value_size as usize != value.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let key = 0u32;
    let mut attr = Attr::new().fd(0, array).u64(8, &raw const key as u64).u64(16, value.as_ptr() as u64);
    // SAFETY: keys of arrays have four bytes, and the value was compared.
    unsafe { attr.call(Command::MapUpdateElem) }.map(drop)
}

/// Ends system calls that write a map; the verifier then takes the values of one that programs only read for constants.
///
/// # Errors
/// The kernel's.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { Attr::new().fd(0, map).call(Command::MapFreeze) }.map(drop)
}

/// The kernel's information about a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// The kernel's id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, of one CPU where each has its own.
    pub value_size: u32,
    /// How many entries it has room for.
    pub max_entries: u32,
}

/// Asks a map what it is.
///
/// # Errors
/// The kernel's.
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let info = info(map)?;
    Ok(MapInfo {
        id: info.get_u32(4),
        key_size: info.get_u32(8),
        value_size: info.get_u32(12),
        max_entries: info.get_u32(16),
    })
}

/// Looks up as many entries as `count`, from a position on; the beginning is `None`. Returns how many there are and the position behind them:
/// `None` at the end. Works for arrays, too.
///
/// # Errors
/// The kernel's: `ENOSPC` when there is not room for all entries of one bucket.
///
/// # Safety
/// `keys` and `values` have room for so many keys and values of the map.
pub unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    keys: *mut u8,
    values: *mut u8,
    count: usize,
) -> io::Result<(usize, Option<u32>)> {
    const COUNT: usize = 32;
    let (start, mut next) = (from.unwrap_or(0), 0u32);
    let mut attr = Attr::new()
        .u64(0, from.map_or(0, |_| &raw const start as u64))
        .u64(8, &raw mut next as u64)
        .u64(16, keys as u64)
        .u64(24, values as u64)
        .u32(COUNT, count as u32)
        .fd(36, map);
    // SAFETY: the caller's promise.
    let is_end = match unsafe { attr.call(Command::MapLookupBatch) } {
        Ok(_) => false,
        // With this error the kernel reports the end of the map, and the count holds.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    Ok((attr.get_u32(COUNT) as usize, (!is_end).then_some(next)))
}

/// The map that is an element of an array of maps; `None` if there is none.
///
/// # Errors
/// The kernel's.
pub fn inner(array: BorrowedFd<'_>, index: u32) -> io::Result<Option<OwnedFd>> {
    let mut last = None;
    loop {
        let Some(id) = inner_id(array, index)? else { return Ok(None) };
        // SAFETY: no pointers; the command returns a new descriptor.
        match present(unsafe { Attr::new().u32(0, id).call_for_fd(Command::MapGetFdById) })? {
            Some(fd) => return Ok(Some(fd)),
            // Another map has taken its place meanwhile.
            None if last != Some(id) => last = Some(id),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// The kernel's id of that map.
///
/// # Errors
/// The kernel's.
pub fn inner_id(array: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0u32;
    let mut attr = Attr::new().fd(0, array).u64(8, &raw const index as u64).u64(16, &raw mut id as u64);
    // SAFETY: keys and values of arrays of maps have four bytes.
    Ok(present(unsafe { attr.call(Command::MapLookupElem) })?.map(|_| id))
}

/// Sets an element of an array of maps. No program uses the map that it replaces when this returns.
///
/// # Errors
/// The kernel's; also when the map is not of the array's kind.
pub fn set_inner(array: BorrowedFd<'_>, index: u32, map: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let value = map.as_raw_fd() as u32;
    let mut attr = Attr::new().fd(0, array).u64(8, &raw const index as u64).u64(16, &raw const value as u64);
    // SAFETY: keys and values of arrays of maps have four bytes.
    unsafe { attr.call(Command::MapUpdateElem) }.map(drop)
}

/// Removes an element of an array of maps, if there is one.
///
/// # Errors
/// The kernel's.
pub fn delete_element(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut attr = Attr::new().fd(0, map).u64(8, &raw const index as u64);
    // SAFETY: keys of arrays have four bytes.
    present(unsafe { attr.call(Command::MapDeleteElem) }).map(drop)
}

/// Sets the one element of an array of programs.
///
/// # Errors
/// The kernel's.
pub fn set_program(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let (key, value) = (0u32, program.as_raw_fd() as u32);
    let mut attr = Attr::new().fd(0, array).u64(8, &raw const key as u64).u64(16, &raw const value as u64);
    // SAFETY: keys and values of arrays of programs have four bytes.
    unsafe { attr.call(Command::MapUpdateElem) }.map(drop)
}
