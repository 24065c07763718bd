//! Interfaces by the requests of ethtool(8).

use std::{io, net::UdpSocket, os::fd::AsRawFd as _};

/// From `linux/sockios.h`.
const SIOCETHTOOL: libc::c_ulong = 0x8946;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// The name of an interface's driver, as `ethtool -i` shows it.
///
/// # Errors
/// When the interface does not report it.
pub fn driver(interface: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    // SAFETY: for this command the kernel fills such a structure.
    unsafe { request(interface, &mut info) }?;
    let name = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Switches the transmit checksum offload of an interface.
///
/// # Errors
/// The kernel's.
pub fn set_transmit_checksum(interface: &str, on: bool) -> io::Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    // SAFETY: for this command the kernel reads a `struct ethtool_value`: the command and a number.
    unsafe { request(interface, &mut [ETHTOOL_STXCSUM, u32::from(on)]) }
}

/// # Safety
/// The argument begins with a command, and has the type that the kernel reads and writes for this command.
unsafe fn request<T>(interface: &str, argument: &mut T) -> io::Result<()> {
    // Any socket will do.
    let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
    // SAFETY: plain data; all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *argument).cast();
    // SAFETY: an open socket; the request names an interface and points to the argument, whose type the caller guarantees; both are alive.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
