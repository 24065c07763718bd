//! The little of bpf(2) that is needed to look at a kernel.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
};

use anyhow::{Context, Result};

// Commands of <linux/bpf.h>.
const PROG_GET_NEXT_ID: i64 = 11;
const PROG_GET_FD_BY_ID: i64 = 13;
const OBJ_GET_INFO_BY_FD: i64 = 15;

/// Length of a name in the kernel, without the final zero.
const NAME_LENGTH: usize = 15;

/// `union bpf_attr`, as large as any command here needs.
type Attributes = [u64; 16];

fn bpf(command: i64, attributes: &mut Attributes) -> io::Result<i64> {
    // SAFETY: the attributes are as long as said and live through the call; what they point to does too (see callers).
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn low_high(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The names of all loaded programs, as the kernel cuts them.
pub(crate) fn loaded_programs() -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut id = 0;
    loop {
        let mut attributes = Attributes::default();
        attributes[0] = low_high(id, 0);
        match bpf(PROG_GET_NEXT_ID, &mut attributes) {
            Ok(_) => id = (attributes[0] >> 32) as u32,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(names),
            Err(error) => return Err(error).context("BPF_PROG_GET_NEXT_ID"),
        }
        let mut attributes = Attributes::default();
        attributes[0] = low_high(id, 0);
        let program = owned(bpf(PROG_GET_FD_BY_ID, &mut attributes).context("BPF_PROG_GET_FD_BY_ID")?)?;
        names.insert(name(&program)?);
    }
}

/// Reads `name` of `struct bpf_prog_info`.
fn name(program: &File) -> Result<String> {
    const NAME: usize = 64;
    let mut info = [0u8; 128];
    let mut attributes = Attributes::default();
    attributes[0] = low_high(u32::try_from(program.as_raw_fd())?, info.len() as u32);
    attributes[1] = info.as_mut_ptr() as u64;
    bpf(OBJ_GET_INFO_BY_FD, &mut attributes).context("BPF_OBJ_GET_INFO_BY_FD")?;
    let name = info[NAME..].iter().copied().take(NAME_LENGTH).take_while(|byte| *byte != 0);
    Ok(String::from_utf8_lossy(&name.collect::<Vec<_>>()).into_owned())
}

fn owned(fd: i64) -> Result<File> {
    let fd = i32::try_from(fd)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
