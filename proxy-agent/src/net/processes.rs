//! Sockets of other processes, borrowed.

use std::{
    collections::HashSet,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use proxy_sys::process::{open_process, take_descriptor};

/// Does `work` once with each socket of a visible process (in a container: needs the host's process ids). A socket that
/// cannot be had, for want of permission or because it is closed meanwhile, is passed over. Needs kernel 5.6.
pub fn for_each_socket(mut work: impl FnMut(&OwnedFd)) {
    let mut seen = HashSet::new();
    for (name, process) in numbered("/proc".as_ref()) {
        let Ok(handle) = open_process(name) else { continue };
        for (descriptor, link) in numbered(&process.join("fd")) {
            let is_new = fs::read_link(&link).is_ok_and(|target| {
                target.to_str().is_some_and(|it| it.starts_with("socket:")) && seen.insert(target)
            });
            if is_new && let Ok(socket) = take_descriptor(&handle, descriptor) {
                work(&socket);
            }
        }
    }
}

/// Entries of a directory whose names are numbers.
fn numbered(directory: &Path) -> Vec<(i32, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect()
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd as _};

    use proxy_sys::socket::socket_cookie;

    use super::*;

    #[test]
    fn a_socket_is_found_once() {
        let socket = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let _second = socket.try_clone().unwrap();
        let ours = socket_cookie(socket.as_fd()).unwrap();
        let mut found = 0;
        for_each_socket(|socket| {
            found += usize::from(socket_cookie(socket.as_fd()).is_ok_and(|it| it == ours))
        });
        assert_eq!(found, 1);
    }
}
