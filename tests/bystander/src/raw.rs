//! IP protocols without ports of ours, and multicast: which packets arrive at a socket.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::{
        socket::{MsgFlags, SockaddrStorage, recv, sendto, setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike},
    },
};

use proxy_harness::cluster::{Host, Netns, until};

/// How long a receiver waits for missing packets.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends packets of an IP protocol with so many bytes each to one of another place's addresses, and counts those that arrive
/// whole, after fragmentation by the sender and reassembly by the receiver.
///
/// The first bytes are those of a packet from port 40000 to port 30080, in case a program takes them for ports.
pub fn raw_packets(from: &Host, to: IpAddr, at: &Netns, protocol: u8, size: usize, count: u8) -> Result<u64> {
    let receiver = raw_socket(at, to.is_ipv4(), protocol)?;
    setsockopt(&receiver, ReceiveTimeout, &TimeVal::milliseconds(20))?;
    let sender = raw_socket(&from.netns, to.is_ipv4(), protocol)?;
    let address = SockaddrStorage::from(SocketAddr::new(to, 0));
    let payload = |number: u8| {
        let mut bytes = vec![number; size];
        bytes[..4].copy_from_slice(&[0x9c, 0x40, 0x75, 0x80]);
        bytes
    };
    for number in 0..count {
        sendto(sender.as_raw_fd(), &payload(number), &address, MsgFlags::empty())
            .with_context(|| format!("protocol {protocol} to {to}"))?;
    }
    let skip = if to.is_ipv4() { 20 } else { 0 };
    let (mut arrived, begin) = (0, Instant::now());
    while arrived < u64::from(count) && begin.elapsed() < PATIENCE {
        let mut buffer = [0; 65_536];
        match recv(receiver.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                let got = buffer.get(skip..length).unwrap_or_default();
                arrived += u64::from((0..count).any(|number| got == payload(number)));
            }
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(arrived)
}

fn raw_socket(netns: &Netns, ipv4: bool, protocol: u8) -> Result<OwnedFd> {
    let family = if ipv4 { libc::AF_INET } else { libc::AF_INET6 };
    netns.run(|| {
        // SAFETY: no pointers are passed.
        let result =
            unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::c_int::from(protocol)) };
        let fd = Errno::result(result)?;
        // SAFETY: the kernel has just returned the descriptor, which has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// A place that multicast is sent from or joined at: its namespace, device, and the device's IPv4 address.
pub(super) type On<'a> = (&'a Netns, &'a str, Ipv4Addr);

/// Sends datagrams to a multicast group of the link, from and to the same port, and counts those that arrive.
pub fn multicast(from: On<'_>, to: On<'_>, port: u16, ipv4: bool, count: u8) -> Result<u64> {
    const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 7, 7, 7);
    const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 7, 7);
    let receiver = to.0.run(|| {
        let any: IpAddr = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = bind((any, port).into())?;
        if ipv4 {
            socket.join_multicast_v4(&GROUP_V4, &to.2)?;
        } else {
            socket.join_multicast_v6(&GROUP_V6, if_nametoindex(to.1)?)?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })?;
    from.0.run(|| {
        // By IPv4 the source address chooses the device, by IPv6 the scope of the destination does.
        let source: IpAddr = if ipv4 { from.2.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = bind((source, port).into())?;
        let group: SocketAddr = if ipv4 {
            (GROUP_V4, port).into()
        } else {
            SocketAddrV6::new(GROUP_V6, port, 0, if_nametoindex(from.1)?).into()
        };
        for number in 0..count {
            socket.send_to(&[number; 100], group).with_context(|| format!("to {group}"))?;
        }
        Ok(())
    })?;
    let mut arrived = 0;
    while arrived < u64::from(count) {
        match receiver.recv(&mut [0; 200]) {
            Ok(100) => arrived += 1,
            Ok(_) => {}
            Err(error) if is_timeout(&error) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(arrived)
}

/// A socket at this address, as soon as it is free: a child that another test is just starting may hold the previous one for a moment,
/// from `fork` to `exec`.
fn bind(address: SocketAddr) -> Result<UdpSocket> {
    until(5 * PATIENCE, "an address to be free", || match UdpSocket::bind(address) {
        Ok(socket) => Ok(Some(socket)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error.into()),
    })
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
