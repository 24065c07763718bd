//! `peer datagram`: one datagram there and one back, whatever the path's MTU is.

use std::{
    io::{self, Write},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use nix::errno::Errno;
use proxy_harness::cluster::{Answer, Reply};

use crate::{
    Target,
    client::{any, destination, error_name, over_udp, request_text, source},
};

/// What a client does about the path's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PathMtu {
    /// As most programs: what fits the known MTU may not be fragmented, what does not is sent in fragments.
    Want,
    /// Nothing may be fragmented: sends as much as fits the path, as far as it is known.
    Do,
    /// Everything may be fragmented.
    Dont,
}

/// Sends until there is an answer, at most `attempts` times: the first may be lost while the path's MTU is learnt, so others follow soon. Waits
/// for any of them as long as for all of them one after the other.
pub(crate) fn datagram(target: &Target, path_mtu: PathMtu, attempts: usize) -> io::Result<()> {
    let start = Instant::now();
    let result = exchange(target, path_mtu, attempts);
    let elapsed_ms = start.elapsed().as_millis() as u64;
    let reply = match result {
        Ok((answer, peer)) => Reply { answer: Some(answer), peer: Some(peer), error: None, elapsed_ms },
        Err(error) => Reply { answer: None, peer: None, error: Some(error_name(&error)), elapsed_ms },
    };
    writeln!(io::stdout(), "{}", serde_json::to_string(&reply)?)
}

fn exchange(target: &Target, path_mtu: PathMtu, attempts: usize) -> io::Result<(Answer, SocketAddr)> {
    let to = destination(target);
    let socket = UdpSocket::bind(source(target, 0).unwrap_or((any(&to), 0).into()))?;
    let mode = match path_mtu {
        PathMtu::Want => libc::IP_PMTUDISC_WANT,
        PathMtu::Do => libc::IP_PMTUDISC_DO,
        PathMtu::Dont => libc::IP_PMTUDISC_DONT,
    };
    if to.is_ipv4() {
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)?;
    } else {
        set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, mode)?;
    }
    if target.connected_udp || path_mtu == PathMtu::Do {
        // Only a connected socket is told.
        socket.connect(to)?;
    }
    let mut error = Errno::ETIMEDOUT.into();
    let end = Instant::now() + target.timeout() * attempts as u32;
    for left in (0..attempts).rev() {
        let rest = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(if left == 0 { rest } else { rest.min(target.timeout() / 4) }))?;
        let size = if path_mtu == PathMtu::Do { target.size.min(room(&socket)?) } else { target.size };
        match over_udp(target, &socket, &request_text(0, size)) {
            Ok(done) => return Ok(done),
            Err(reason) => error = reason,
        }
    }
    Err(error)
}

/// How many bytes fit a datagram that is not fragmented, as far as the kernel knows.
fn room(socket: &UdpSocket) -> io::Result<usize> {
    const UDP: usize = 8;
    let (mtu, ip) = if socket.local_addr()?.is_ipv4() {
        (option(socket, libc::IPPROTO_IP, libc::IP_MTU)?, 20)
    } else {
        (option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU)?, 40)
    };
    Ok((mtu as usize).saturating_sub(ip + UDP))
}

fn set_option(
    socket: &UdpSocket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value has the length that is given and outlives the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

fn option(socket: &UdpSocket, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value has room for the length that is given, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    Errno::result(result)?;
    Ok(value)
}
