//! `peer ping`: one echo request, because `ping` is not on every machine.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, recv, send,
            setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// Bytes of an IPv4 header, which raw sockets give with the message.
const IPV4: usize = 20;
const SEQUENCE: u16 = 1;

/// Sends it and prints `true` if it is answered in time, `false` if not, and the name of an error.
pub(crate) fn ping(to: IpAddr, timeout: Duration, size: usize) -> io::Result<()> {
    let result = match answered(to, timeout, size) {
        Ok(is_answered) => is_answered.to_string(),
        Err(errno) => errno.to_string(),
    };
    writeln!(io::stdout(), "{result}")
}

fn answered(to: IpAddr, timeout: Duration, size: usize) -> nix::Result<bool> {
    let (family, protocol, request, reply, skip) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0, IPV4),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129, 0),
    };
    let socket: OwnedFd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    // Connected: only the address that was asked may answer.
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(timeout.as_millis() as i64))?;
    let id = std::process::id() as u16;
    let mut sent = message(request, id).to_vec();
    // Zeroes do not change the checksum.
    sent.resize(sent.len() + size, 0);
    send(socket.as_raw_fd(), &sent, MsgFlags::empty())?;
    let begin = Instant::now();
    while begin.elapsed() < timeout {
        let mut buffer = [0; 65_536];
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                let message = buffer.get(skip..length).unwrap_or_default();
                let is_whole = message.len() == sent.len();
                if is_whole && message.first() == Some(&reply) && message.get(4..6) == Some(&id.to_be_bytes())
                {
                    return Ok(true);
                }
            }
            Err(Errno::EAGAIN) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
    Ok(false)
}

/// An echo request. The kernel computes the checksum for IPv6 again.
fn message(r#type: u8, id: u16) -> [u8; 8] {
    let ([i, d], [s, q]) = (id.to_be_bytes(), SEQUENCE.to_be_bytes());
    let words = [u16::from_be_bytes([r#type, 0]), id, SEQUENCE];
    let sum: u32 = words.into_iter().map(u32::from).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    let [c, k] = checksum.to_be_bytes();
    [r#type, 0, c, k, i, d, s, q]
}
