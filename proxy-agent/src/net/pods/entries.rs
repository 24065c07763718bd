//! The rules of iptables' own kernel part, by its socket options: no library reads them.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;

/// A family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IptablesFamily {
    /// iptables.
    V4,
    /// ip6tables.
    V6,
}

impl IptablesFamily {
    /// Where the tables are named that this thread's network namespace has.
    pub(super) fn tables_file(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    /// Where `target_offset` is in `struct ipt_entry` or `struct ip6t_entry`; `next_offset` follows it.
    pub(super) fn target_offset(self) -> usize {
        match self {
            Self::V4 => 88,
            Self::V6 => 140,
        }
    }
}

/// `struct ipt_getinfo`.
#[repr(C)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// The entries of a table of this thread's network namespace, as the kernel lays them out.
///
/// # Errors
/// The kernel's.
pub(super) fn iptables_entries(family: IptablesFamily, table: &str) -> io::Result<Vec<u8>> {
    /// `sizeof(struct ipt_get_entries)`: a name and a size, and what follows is aligned.
    const HEADER: usize = 40;
    let (domain, level) = match family {
        IptablesFamily::V4 => (libc::AF_INET, libc::IPPROTO_IP),
        IptablesFamily::V6 => (libc::AF_INET6, libc::IPPROTO_IPV6),
    };
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let get = |option: libc::c_int, at: *mut u8, length: usize| {
        let mut length = length as libc::socklen_t;
        // SAFETY: the callers' buffers have the length that they give.
        let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, at.cast(), &mut length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: all zero is a value of it.
    let mut info: Info = unsafe { mem::zeroed() };
    let length = table.len().min(NAME - 1);
    info.name[..length].copy_from_slice(&table.as_bytes()[..length]);
    get(GET_INFO, (&raw mut info).cast(), size_of::<Info>())?;
    let mut answer = vec![0u8; HEADER + info.size as usize];
    answer[..length].copy_from_slice(&table.as_bytes()[..length]);
    answer[NAME..NAME + 4].copy_from_slice(&info.size.to_ne_bytes());
    get(GET_ENTRIES, answer.as_mut_ptr(), answer.len())?;
    Ok(answer.split_off(HEADER))
}
