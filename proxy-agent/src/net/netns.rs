//! The network namespaces of this machine, and work inside them.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    net::IpAddr,
    ops::ControlFlow,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use proxy_sys::socket::netns_cookie;
use tracing::debug;

/// Where namespaces that need no process have their names, here and on the host when its processes are visible.
const NAMED: [&str; 4] =
    ["/run/netns", "/run/docker/netns", "/proc/1/root/run/netns", "/proc/1/root/run/docker/netns"];

/// How a walk through the namespaces went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Namespaces that work was done in.
    pub entered: usize,
    /// Processes and names whose namespace could not be opened or entered, for want of permission mostly; so some of them may
    /// be in a namespace that was entered by another way. Those that vanished meanwhile are not counted.
    pub failed: usize,
}

/// Does `work` once in each network namespace that can be found, this one first, until all are done or `work` breaks
/// off: those that a visible process is in (in a container: needs the host's process ids) and those with a name.
///
/// For use where blocking is allowed. Sockets that `work` opens belong to the namespace and may outlive it.
///
/// # Errors
/// When no thread can be made, or when `work` panics.
pub fn walk(mut work: impl FnMut() -> ControlFlow<()> + Send) -> io::Result<Walk> {
    // A thread stays in the namespace that it entered, and its children begin there. So this one does nothing else,
    // starts nothing and ends here: no other work can run in a foreign namespace.
    thread::scope(|scope| {
        let walker = thread::Builder::new().name("netns".into());
        let walker = walker.spawn_scoped(scope, || {
            let mut walk = Walk::default();
            let mut seen = HashSet::new();
            for (path, _) in files() {
                match enter(&path, &mut seen) {
                    Ok(false) => {}
                    Ok(true) => {
                        walk.entered += 1;
                        if work().is_break() {
                            break;
                        }
                    }
                    Err(error) => {
                        debug!("cannot enter the network namespace {}: {error}", path.display());
                        walk.failed += 1;
                    }
                }
            }
            walk
        })?;
        walker.join().map_err(|_| io::Error::other("work in a network namespace panicked"))
    })
}

/// A network namespace, by a file that stands for it. Keeps nothing open: that would keep the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Device and inode, the same for all of its files while it lives.
    pub id: (u64, u64),
    /// Whether a visible process is in it.
    pub has_process: bool,
    path: PathBuf,
}

impl Namespace {
    /// Opens it.
    ///
    /// # Errors
    /// Also when the file stands for another namespace by now.
    pub fn open(&self) -> io::Result<File> {
        let file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) == self.id {
            Ok(file)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

/// The network namespaces that can be found, each once; see [`walk`].
pub fn find() -> Vec<Namespace> {
    let mut found: HashMap<(u64, u64), Namespace> = HashMap::new();
    let Ok(own) = fs::metadata(OWN) else { return Vec::new() };
    for (path, has_process) in files() {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        // All namespaces are on one file system.
        if metadata.dev() != own.dev() {
            continue;
        }
        let id = (metadata.dev(), metadata.ino());
        found.entry(id).or_insert_with(|| Namespace { id, has_process, path }).has_process |= has_process;
    }
    found.into_values().collect()
}

/// Does `work` within each of these namespaces, with the item's second part. Namespaces that are gone are left out.
///
/// For use where blocking is allowed.
///
/// # Errors
/// When no thread can be made, or when `work` panics.
pub fn visit<T: Send>(
    items: Vec<(Namespace, T)>,
    mut work: impl FnMut(&Namespace, T) + Send,
) -> io::Result<()> {
    // As in `walk`.
    thread::scope(|scope| {
        let visitor = thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            for (namespace, item) in items {
                let entered = namespace.open().and_then(|file| Ok(setns(&file, CloneFlags::CLONE_NEWNET)?));
                match entered {
                    Ok(()) => work(&namespace, item),
                    Err(error) => {
                        debug!("cannot enter the network namespace {}: {error}", namespace.path.display());
                    }
                }
            }
        })?;
        visitor.join().map_err(|_| io::Error::other("work in a network namespace panicked"))
    })
}

/// By network namespace cookie: where a socket that is bound to no address will send from, at most one address per
/// family. In this namespace these are `primary`, the node's own, the preferred ones first.
///
/// For use where blocking is allowed.
///
/// # Errors
/// When namespaces have no cookies that can be read (before kernel 5.14), or as [`walk`] does.
pub fn addresses(primary: &[IpAddr]) -> io::Result<HashMap<u64, Vec<IpAddr>>> {
    let own = netns_cookie()?;
    let mut found = HashMap::new();
    walk(|| {
        match netns_cookie().and_then(|cookie| Ok((cookie, global_addresses()?))) {
            Ok((cookie, addresses)) => {
                found.insert(cookie, first_of_each_family(&addresses));
            }
            Err(error) => debug!("cannot read the addresses of a network namespace: {error}"),
        }
        ControlFlow::Continue(())
    })?;
    found.insert(own, first_of_each_family(primary));
    Ok(found)
}

/// This namespace.
const OWN: &str = "/proc/self/ns/net";

/// Files that may stand for a network namespace, many for the same one, and whether each is a process's.
fn files() -> impl Iterator<Item = (PathBuf, bool)> {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    let named = NAMED.into_iter().flat_map(entries).map(|entry| (entry.path(), false));
    let is_process = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let of_processes = entries("/proc")
        .filter(move |entry| entry.file_name().to_str().is_some_and(is_process))
        .map(|entry| (entry.path().join("ns/net"), true));
    std::iter::once((PathBuf::from(OWN), true)).chain(of_processes).chain(named)
}

/// Enters the namespace that a file stands for, unless it was `seen` (device and inode), is none, or is gone.
fn enter(path: &Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<bool> {
    open(path, seen)
        .and_then(|file| match file {
            Some(file) => Ok(setns(&file, CloneFlags::CLONE_NEWNET).map(|()| true)?),
            None => Ok(false),
        })
        .or_else(|error| if is_gone(&error, path) { Ok(false) } else { Err(error) })
}

fn open(path: &Path, seen: &mut HashSet<(u64, u64)>) -> io::Result<Option<File>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() || seen.contains(&(metadata.dev(), metadata.ino())) {
        return Ok(None);
    }
    let file = File::open(path)?;
    // A name without a namespace is an ordinary file: the mount point of a bind mount that did not reach this mount namespace.
    if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    let metadata = file.metadata()?;
    Ok(seen.insert((metadata.dev(), metadata.ino())).then_some(file))
}

/// Whether the process or the name vanished meanwhile.
fn is_gone(error: &io::Error, path: &Path) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => true,
        // Also for a process that has just ended.
        Some(libc::EACCES) => path.ancestors().nth(2).is_some_and(|process| !process.exists()),
        _ => false,
    }
}

/// Addresses of interfaces that are up, in the kernel's order, which sources are chosen in.
pub(super) fn global_addresses() -> io::Result<Vec<IpAddr>> {
    let usable = |flags: InterfaceFlags| {
        flags.contains(InterfaceFlags::IFF_UP) && !flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    let addresses = getifaddrs()?.filter(|interface| usable(interface.flags)).filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.filter(is_global).collect())
}

fn is_global(ip: &IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !is_link_local && !ip.is_loopback() && !ip.is_unspecified()
}

fn first_of_each_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let v4 = addresses.iter().find(|ip| ip.is_ipv4());
    let v6 = addresses.iter().find(|ip| ip.is_ipv6());
    v4.into_iter().chain(v6).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn one_address_per_family_and_the_first_one() {
        let all = ips(&["fd00::2", "10.0.0.1", "10.0.0.2", "fd00::1"]);
        assert_eq!(first_of_each_family(&all), ips(&["10.0.0.1", "fd00::2"]));
        assert_eq!(first_of_each_family(&ips(&["fd00::2"])), ips(&["fd00::2"]));
    }

    #[test]
    fn addresses_of_one_link_are_not_sent_from() {
        let all = ips(&["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "10.0.0.1", "fd00::1"]);
        let global: Vec<IpAddr> = all.into_iter().filter(is_global).collect();
        assert_eq!(global, ips(&["10.0.0.1", "fd00::1"]));
    }

    #[test]
    fn what_stands_for_no_namespace_or_is_gone_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let ordinary = directory.path().join("left-over");
        fs::write(&ordinary, "").unwrap();
        for path in [&ordinary, &directory.path().join("gone"), directory.path()] {
            assert!(!enter(path, &mut HashSet::new()).unwrap(), "{}", path.display());
        }
    }
}
