//! `peer park`, `peer sockets`, `peer connected` and `peer converted`: UDP sockets that stay, and many of them.

use std::{
    io::{self, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_harness::cluster::Reply;
use proxy_sys::socket::set_option;

use crate::client::{any, error_name, parse, request_text};

/// Sends a request to each address by one socket, which may be connected to the first, and prints `sent`. Waits for a line of input, and only then receives: prints a
/// reply for each, in the order in which they came.
pub(crate) fn park(to: &[SocketAddr], connected: bool, timeout: Duration) -> io::Result<()> {
    let Some(first) = to.first() else { return Ok(()) };
    let socket = UdpSocket::bind((any(first), 0))?;
    socket.set_read_timeout(Some(timeout))?;
    if connected {
        socket.connect(first)?;
    }
    let text = request_text(0, 0);
    for address in to {
        socket.send_to(text.as_bytes(), address)?;
    }
    writeln!(io::stdout(), "sent")?;
    io::stdin().read_line(&mut String::new())?;
    for _ in to {
        let start = Instant::now();
        let mut buffer = [0; 2048];
        let result = socket.recv_from(&mut buffer).and_then(|(length, from)| {
            Ok((parse(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()), &text)?, from))
        });
        let elapsed_ms = start.elapsed().as_millis() as u64;
        let reply = match result {
            Ok((answer, from)) => Reply { answer: Some(answer), peer: Some(from), error: None, elapsed_ms },
            Err(error) => Reply { answer: None, peer: None, error: Some(error_name(&error)), elapsed_ms },
        };
        writeln!(io::stdout(), "{}", serde_json::to_string(&reply)?)?;
    }
    Ok(())
}

/// Opens sockets, a few hundred at a time, and sends a datagram to each address by each.
pub(crate) fn sockets(to: &[SocketAddr], count: usize) -> io::Result<()> {
    const AT_ONCE: usize = 400;
    let Some(first) = to.first() else { return Ok(()) };
    let mut done = 0;
    while done < count {
        let open = (0..AT_ONCE.min(count - done))
            .map(|_| UdpSocket::bind((any(first), 0)))
            .collect::<io::Result<Vec<_>>>()?;
        for socket in &open {
            for address in to {
                // A full queue on the way loses datagrams; the sockets keep the rest all the same.
                let _ = socket.send_to(b"\n", address);
            }
        }
        done += open.len();
    }
    Ok(())
}

/// Connects sockets, all open at once, and checks the peer that each shows; closes some, opens as many, and checks all again.
/// Prints `sent`, waits for a line of input, and checks once more.
pub(crate) fn connected(to: &[SocketAddr], count: usize) -> io::Result<()> {
    /// For everything else.
    const OTHER_FILES: u64 = 64;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, (count as u64 + OTHER_FILES).min(most), most)?;
    let addresses = || to.iter().copied().cycle();
    let open = |to: SocketAddr| {
        let socket = UdpSocket::bind((any(&to), 0))?;
        socket.connect(to)?;
        Ok(socket)
    };
    let mut open_sockets = addresses().take(count).map(open).collect::<io::Result<Vec<_>>>()?;
    let check = |sockets: &[UdpSocket]| {
        sockets.iter().zip(addresses()).try_for_each(|(socket, requested)| match socket.peer_addr()? {
            peer if peer == requested => Ok(()),
            peer => Err(io::Error::other(format!("{requested} shows as {peer}"))),
        })
    };
    check(&open_sockets)?;
    for (socket, to) in open_sockets.iter_mut().zip(addresses()).step_by(3) {
        *socket = open(to)?;
    }
    check(&open_sockets)?;
    writeln!(io::stdout(), "sent")?;
    io::stdin().read_line(&mut String::new())?;
    check(&open_sockets)
}

/// Connects IPv6 sockets to each address, the last of which is an IPv4 one, and makes them sockets of IPv4. Prints `sent`, and closes
/// them after a line of input.
pub(crate) fn converted(to: &[SocketAddr], count: usize) -> io::Result<()> {
    let open = |_| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        for address in to {
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            socket.connect((ip, address.port()))?;
        }
        set_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_ADDRFORM, libc::AF_INET)?;
        Ok(socket)
    };
    let open_sockets = (0..count).map(open).collect::<io::Result<Vec<_>>>()?;
    if open_sockets.iter().any(|socket| socket.peer_addr().ok().as_ref() != to.last()) {
        return Err(io::Error::other("a socket does not show its last address as its peer"));
    }
    writeln!(io::stdout(), "sent")?;
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}
