//! The tables of iptables' own kernel part ("legacy"), read and replaced by its socket options: no library does it.
#![expect(unsafe_code, reason = "a socket option with a pointer in it")]

use std::{
    array::from_fn,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use proxy_sys::socket::{read_option, write_option};

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;
/// `IPT_SO_SET_REPLACE`, `IP6T_SO_SET_REPLACE`.
const SET_REPLACE: libc::c_int = 64;
/// `IPT_SO_SET_ADD_COUNTERS`, `IP6T_SO_SET_ADD_COUNTERS`.
const SET_ADD_COUNTERS: libc::c_int = 65;
/// `XT_TABLE_MAXNAMELEN`.
const NAME: usize = 32;
/// `NF_INET_NUMHOOKS`.
pub(crate) const HOOKS: usize = 5;
/// Bytes of `struct xt_counters`.
const COUNTERS: usize = 16;

/// A family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IptablesFamily {
    /// iptables.
    V4,
    /// ip6tables.
    V6,
}

impl IptablesFamily {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Where the tables are named that this thread's network namespace has.
    pub(crate) fn tables_file(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    /// Where `target_offset` is in `struct ipt_entry` or `struct ip6t_entry`; `next_offset` follows it.
    pub(crate) fn target_offset(self) -> usize {
        match self {
            Self::V4 => 88,
            Self::V6 => 140,
        }
    }

    fn domain(self) -> AddressFamily {
        if self == Self::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
    }

    fn level(self) -> libc::c_int {
        if self == Self::V4 { libc::IPPROTO_IP } else { libc::IPPROTO_IPV6 }
    }
}

/// A table as the kernel lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// Hooks that it has a chain for, one bit each.
    pub(crate) valid_hooks: u32,
    /// Where the chain of each hook begins, in bytes.
    pub(crate) hook_entry: [u32; HOOKS],
    /// Where the policy of each hook is.
    pub(crate) underflow: [u32; HOOKS],
    /// Number of entries.
    pub(crate) count: u32,
    /// The entries.
    pub(crate) entries: Vec<u8>,
}

/// Reads a table of this thread's network namespace. The kernel makes a missing one.
///
/// # Errors
/// The kernel's.
pub(crate) fn read(family: IptablesFamily, table: &str) -> io::Result<Table> {
    /// `struct ipt_getinfo`: the name; then hooks, entry points, policies, number and size of the entries, of 32 bits each.
    const INFO: usize = NAME + 4 * (3 + 2 * HOOKS);
    /// `sizeof(struct ipt_get_entries)`: a name and a size; the entries behind it are aligned.
    const HEADER: usize = 40;
    let socket = open(family)?;
    let mut info = [0; INFO];
    info[..NAME].copy_from_slice(&name_of(table));
    read_option(socket.as_fd(), family.level(), GET_INFO, &mut info)?;
    let (words, _) = info[NAME..].as_chunks();
    let word = |number: usize| u32::from_ne_bytes(words[number]);
    let size = word(2 + 2 * HOOKS);
    let mut answer = vec![0u8; HEADER + size as usize];
    answer[..NAME].copy_from_slice(&name_of(table));
    answer[NAME..NAME + 4].copy_from_slice(&size.to_ne_bytes());
    read_option(socket.as_fd(), family.level(), GET_ENTRIES, &mut answer)?;
    Ok(Table {
        valid_hooks: word(0),
        hook_entry: from_fn(|hook| word(1 + hook)),
        underflow: from_fn(|hook| word(1 + HOOKS + hook)),
        count: word(1 + 2 * HOOKS),
        entries: answer.split_off(HEADER),
    })
}

/// Puts a table in the place of one that has `before` entries, in one step. `kept` has for each entry of the new one its number in the old
/// one: those keep their counts.
///
/// # Errors
/// The kernel's: `EAGAIN` if the table has another number of entries by now.
pub(crate) fn replace(
    family: IptablesFamily,
    table: &str,
    new: &Table,
    before: u32,
    kept: &[usize],
) -> io::Result<()> {
    let socket = open(family)?;
    let mut old_counters = vec![0u8; before as usize * COUNTERS];
    // `struct ipt_replace`.
    let mut request = name_of(table).to_vec();
    request.extend(new.valid_hooks.to_ne_bytes());
    request.extend(new.count.to_ne_bytes());
    request.extend((new.entries.len() as u32).to_ne_bytes());
    new.hook_entry.iter().chain(&new.underflow).for_each(|at| request.extend(at.to_ne_bytes()));
    request.extend(before.to_ne_bytes());
    // The kernel writes the old counters there, as many as the request names.
    request.extend((old_counters.as_mut_ptr() as usize).to_ne_bytes());
    request.extend(&new.entries);
    // SAFETY: the one pointer is to `old_counters`, which has room for as many counts as the request names.
    unsafe { write_option(socket.as_fd(), family.level(), SET_REPLACE, &request) }?;

    // `struct xt_counters_info`, padded.
    let mut counts = name_of(table).to_vec();
    counts.extend((kept.len() as u32).to_ne_bytes());
    counts.extend([0; 4]);
    for number in kept {
        let at = number * COUNTERS;
        counts.extend(old_counters.get(at..at + COUNTERS).unwrap_or(&[0; COUNTERS]));
    }
    // SAFETY: no pointers.
    unsafe { write_option(socket.as_fd(), family.level(), SET_ADD_COUNTERS, &counts) }
}

/// Any socket of the family will do; a raw one would take CAP_NET_RAW.
fn open(family: IptablesFamily) -> io::Result<OwnedFd> {
    Ok(socket(family.domain(), SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn name_of(table: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    let length = table.len().min(NAME - 1);
    name[..length].copy_from_slice(&table.as_bytes()[..length]);
    name
}

/// An entry of a table, by where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Where it begins, in bytes.
    pub(crate) at: usize,
    /// Where the next one begins.
    pub(crate) next: usize,
    /// Where its target is.
    pub(crate) target: usize,
    /// The target's name: empty for verdicts and jumps.
    pub(crate) name: String,
}

/// `sizeof(struct xt_entry_target)`: size, name, revision. The target's data follow.
pub(crate) const TARGET: usize = 32;

/// Walks through the entries.
pub(crate) fn entries(family: IptablesFamily, bytes: &[u8]) -> impl Iterator<Item = Entry> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let half = |place: usize| {
            let place = at + place;
            Some(u16::from_ne_bytes(bytes.get(place..place + 2)?.try_into().ok()?) as usize)
        };
        let (target, length) = (half(family.target_offset())?, half(family.target_offset() + 2)?);
        let name = text(bytes.get(at + target + 2..at + target + TARGET - 1)?);
        let entry = Entry { at, next: at + length, target: at + target, name };
        // An entry without length would be the last for ever.
        at = if length == 0 { bytes.len() } else { entry.next };
        Some(entry)
    })
}

/// Up to the zero that ends it.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_walked_through() {
        for family in IptablesFamily::ALL {
            let at = family.target_offset();
            let entry = |name: &str| {
                let target = (at + 4).next_multiple_of(8) + 16;
                let length = target + 40;
                let mut entry = vec![0u8; length];
                entry[at..at + 2].copy_from_slice(&(target as u16).to_ne_bytes());
                entry[at + 2..at + 4].copy_from_slice(&(length as u16).to_ne_bytes());
                entry[target + 2..target + 2 + name.len()].copy_from_slice(name.as_bytes());
                entry
            };
            let all = [entry(""), entry("REDIRECT"), entry("ERROR")].concat();
            let names = |bytes: &[u8]| entries(family, bytes).map(|entry| entry.name).collect::<Vec<_>>();
            assert_eq!(names(&all), ["", "REDIRECT", "ERROR"]);
            for length in 0..all.len() {
                assert!(names(&all[..length]).len() <= 3);
            }
            assert_eq!(names(&[0; 256]).len(), 1, "an entry without length");
        }
    }
}
