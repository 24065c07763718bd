//! Socket options that no crate has.

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
    cookie(UnixDatagram::unbound()?.as_fd(), SO_NETNS_COOKIE)
}

/// The kernel's cookie of a socket.
///
/// # Errors
/// The kernel's.
pub fn socket_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    cookie(socket, libc::SO_COOKIE)
}

fn cookie(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<u64> {
    let mut value = [0; 8];
    read_option(socket, libc::SOL_SOCKET, name, &mut value)?;
    Ok(u64::from_ne_bytes(value))
}

/// Sends by an interface alone, and takes the source address from there (`SO_BINDTOIFINDEX`, kernel 5.1).
///
/// # Errors
/// The kernel's.
pub fn bind_to_interface(socket: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    /// `libc` does not have it.
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    set_option(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, ifindex as libc::c_int)
}

/// Makes the kernel choose the socket of this number, among those that share a port with this one, for new connections
/// (`SO_ATTACH_REUSEPORT_CBPF`). Without such a socket, it chooses as usual.
///
/// # Errors
/// The kernel's.
pub fn choose_listener(listener: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    const RETURN: u16 = 0x06;
    let mut filter = libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: number };
    let program = libc::sock_fprog { len: 1, filter: &raw mut filter };
    // SAFETY: the kernel reads the program, and through its pointer one instruction, during the call; both are alive.
    unsafe { set(listener, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program) }
}

/// Sets an option that is a number.
///
/// # Errors
/// The kernel's.
pub fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: a number has no pointers. The kernel takes as many bytes as there are, or refuses.
    unsafe { set(socket, level, name, &value) }
}

/// Reads an option that is a number.
///
/// # Errors
/// The kernel's.
pub fn option(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value = [0; size_of::<libc::c_int>()];
    read_option(socket, level, name, &mut value)?;
    Ok(libc::c_int::from_ne_bytes(value))
}

/// Reads an option into a buffer, which may have to name what is wanted. The kernel fills as much as it has, and not more than
/// there is room for.
///
/// # Errors
/// The kernel's.
pub fn read_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut length = buffer.len() as libc::socklen_t;
    let at = buffer.as_mut_ptr().cast();
    // SAFETY: the buffer has the length that is given.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, at, &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets an option to bytes.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// Pointers among the bytes point to memory that lives through the call and is as long as the kernel reads or writes for this option.
pub unsafe fn write_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    bytes: &[u8],
) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { set(socket, level, name, bytes) }
}

/// # Safety
/// As for [`write_option`].
unsafe fn set<T: ?Sized>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let (at, length) = ((&raw const *value).cast(), size_of_val(value) as libc::socklen_t);
    // SAFETY: the value has the length that is given; what it points to is the caller's promise.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, at, length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn options_are_read_as_they_were_set() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for value in [0, 1] {
            set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE, value).unwrap();
            assert_eq!(option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_KEEPALIVE).unwrap(), value);
        }
        assert!(option(socket.as_fd(), libc::SOL_SOCKET, -1).is_err());
    }
}
