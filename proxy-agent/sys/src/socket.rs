//! Cookies of sockets and of network namespaces.

use std::{
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::net::UnixDatagram,
    },
};

/// The cookie of this thread's network namespace (kernel 5.14).
///
/// # Errors
/// The kernel's.
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // Any socket will do; this one takes no port and needs no interface.
    socket_option(UnixDatagram::unbound()?.as_fd(), SO_NETNS_COOKIE)
}

/// The kernel's cookie of a socket.
///
/// # Errors
/// The kernel's.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    socket_option(socket, libc::SO_COOKIE)
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
