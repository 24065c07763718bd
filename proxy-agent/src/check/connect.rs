//! A connection by a process in a separate cgroup.
#![expect(unsafe_code, reason = "fork, and system calls alone in the child")]

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{SockaddrLike as _, SockaddrStorage},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// A cgroup that is removed with this value.
pub(super) struct OwnCgroup(PathBuf);

impl OwnCgroup {
    /// Makes one below another, and removes those that checks left which were killed.
    pub(super) fn create(above: &Path) -> io::Result<Self> {
        remove_stale(above);
        let path = above.join(format!("{NAME}{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        // Its processes have been waited for, so it is empty.
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("cannot remove the cgroup {}: {error}", self.0.display());
        }
    }
}

/// How such cgroups are named, before the process id.
const NAME: &str = "proxy-agent-check-";

/// Removes cgroups of earlier checks. One that is in use cannot be removed, and one of a check that just begins is younger.
fn remove_stale(above: &Path) {
    const OLD: Duration = Duration::from_secs(60);
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let is_old =
            || entry.metadata()?.modified()?.elapsed().map_err(io::Error::other).map(|age| age > OLD);
        if entry.file_name().to_string_lossy().starts_with(NAME) && is_old().unwrap_or(false) {
            // It may be in use.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Exit code of a process that could not enter the cgroup; others are `errno`.
const NOT_ENTERED: i32 = 255;

/// Connects by TCP, in a process in that cgroup. That one ends after three seconds at most.
///
/// # Errors
/// That of `connect()`, and those of making the process.
pub(super) fn connect_from(cgroup: &OwnCgroup, to: SocketAddr) -> io::Result<()> {
    let processes = File::options().write(true).open(cgroup.path().join("cgroup.procs"))?;
    let to = SockaddrStorage::from(to);
    // SAFETY: the child calls nothing but async-signal-safe functions, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    match child {
        0 => {
            let code = attempt(processes.as_raw_fd(), &to);
            // SAFETY: no pointers.
            unsafe { libc::_exit(code) }
        }
        error if error < 0 => Err(io::Error::last_os_error()),
        child => match waitpid(Pid::from_raw(child), None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, NOT_ENTERED) => Err(io::Error::other("a process cannot enter the cgroup")),
            WaitStatus::Exited(_, code) => Err(io::Error::from_raw_os_error(code)),
            status => Err(io::Error::other(format!("the connecting process ended by {status:?}"))),
        },
    }
}

/// Runs in the child: system calls alone. The result is its exit code.
fn attempt(processes: i32, to: &SockaddrStorage) -> i32 {
    let patience = libc::timeval { tv_sec: 3, tv_usec: 0 };
    let size = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: plain system calls; the pointers' targets have the given lengths, and outlive the calls.
    unsafe {
        if libc::write(processes, c"0".as_ptr().cast(), 1) != 1 {
            return NOT_ENTERED;
        }
        let family = i32::from((*to.as_ptr()).sa_family);
        // It belongs to the cgroup that it was made in.
        let socket = libc::socket(family, libc::SOCK_STREAM, 0);
        let at = (&raw const patience).cast();
        let is_connected = socket >= 0
            && libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_SNDTIMEO, at, size) == 0
            && libc::connect(socket, to.as_ptr(), to.len()) == 0;
        if is_connected { 0 } else { Errno::last_raw() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn cgroups_of_checks_that_were_killed_go() {
        let folder = tempfile::tempdir().unwrap();
        let [old, young, other] =
            ["proxy-agent-check-1", "proxy-agent-check-2", "pods"].map(|name| folder.path().join(name));
        let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        for path in [&old, &young, &other] {
            fs::create_dir(path).unwrap();
            if path != &young {
                File::open(path).unwrap().set_modified(hour_ago).unwrap();
            }
        }
        let own = OwnCgroup::create(folder.path()).unwrap();
        assert_eq!([&old, &young, &other].map(|path| path.exists()), [false, true, true]);
        assert!(own.path().exists());
    }

    #[test]
    fn a_process_connects_and_ends() {
        // This test does not need a cgroup; any folder with such a file will do.
        let folder = tempfile::tempdir().unwrap();
        let cgroup = OwnCgroup::create(folder.path()).unwrap();
        let processes = cgroup.path().join("cgroup.procs");
        fs::write(&processes, "").unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let to = listener.local_addr().unwrap();
            connect_from(&cgroup, to).unwrap();
            listener.accept().unwrap();
            drop(listener);
            let error = connect_from(&cgroup, to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
        }
        fs::remove_file(&processes).unwrap();
        let path = cgroup.path().to_owned();
        drop(cgroup);
        assert!(!path.exists());
    }
}
