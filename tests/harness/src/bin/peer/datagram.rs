//! `peer datagram`: one datagram there and one back, whatever the path's MTU is.

use std::{
    io::{self, Write},
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use nix::errno::Errno;
use proxy_harness::cluster::{Answer, Reply};
use proxy_sys::socket::{option, set_option};

use crate::{
    Target,
    client::{any, destination, error_name, over_udp, request_text, source},
};

/// How a client treats the path's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PathMtu {
    /// As most programs: a datagram that fits the known MTU may not be fragmented, a larger one is sent in fragments.
    Want,
    /// No fragmentation: sends as much as fits the path, as far as its MTU is known.
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
        set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)?;
    } else {
        set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, mode)?;
    }
    if target.connected_udp || path_mtu == PathMtu::Do {
        // Only a connected socket gets ICMP errors.
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
        (option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_MTU)?, 20)
    } else {
        (option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_MTU)?, 40)
    };
    Ok((mtu as usize).saturating_sub(ip + UDP))
}
