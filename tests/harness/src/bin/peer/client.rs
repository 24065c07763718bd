//! `peer call` and `peer load`.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
            sockopt::{BindToDevice, ReceiveTimeout, ReuseAddr, SendTimeout},
        },
        time::{TimeVal, TimeValLike},
    },
};
use proxy_harness::cluster::{Answer, LoadReport, Reply};

use crate::{Protocol, Target};

/// Makes requests one after the other and prints each result. The first that fails is the last: a hundred
/// timeouts show no more than one.
pub(crate) fn call(target: &Target, count: usize) -> io::Result<()> {
    let mut client = Client::new(target);
    for number in 0..count {
        let reply = client.request(number as u64);
        writeln!(io::stdout(), "{}", serde_json::to_string(&reply)?)?;
        if reply.error.is_some() {
            break;
        }
    }
    Ok(())
}

/// Makes requests until SIGTERM and prints the count so far after each.
pub(crate) fn load(target: &Target, interval: Duration) -> io::Result<()> {
    let mut stop = SigSet::empty();
    stop.add(Signal::SIGTERM);
    stop.thread_block()?;
    let signals = SignalFd::with_flags(&stop, SfdFlags::SFD_NONBLOCK)?;
    let mut client = Client::new(target);
    let mut report = LoadReport::default();
    while signals.read_signal()?.is_none() {
        let reply = client.request(report.sent);
        report.sent += 1;
        report.slowest_ms = report.slowest_ms.max(reply.elapsed_ms);
        match reply.error {
            None => {
                report.ok += 1;
                report.last_server = reply.answer.map(|answer| answer.local);
            }
            Some(error) => {
                report.fail(report.sent, &error);
            }
        }
        // The parent process follows the progress.
        writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
        thread::sleep(interval);
    }
    writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)
}

/// A client with the socket it keeps, if it keeps one.
struct Client<'a> {
    target: &'a Target,
    open: Option<Socket>,
}

enum Socket {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl<'a> Client<'a> {
    fn new(target: &'a Target) -> Self {
        Self { target, open: None }
    }

    fn request(&mut self, number: u64) -> Reply {
        let start = Instant::now();
        let result = self.try_request(number);
        let elapsed_ms = start.elapsed().as_millis() as u64;
        match result {
            Ok((answer, peer)) => Reply { answer: Some(answer), peer: Some(peer), error: None, elapsed_ms },
            Err(error) => {
                // An unconnected UDP socket knows nothing of an error: programs go on using it.
                if self.target.protocol == Protocol::Tcp || self.target.connected_udp {
                    self.open = None;
                }
                Reply { answer: None, peer: None, error: Some(error_name(&error)), elapsed_ms }
            }
        }
    }

    fn try_request(&mut self, number: u64) -> io::Result<(Answer, SocketAddr)> {
        let mut socket = match self.open.take() {
            Some(socket) => socket,
            None => open(self.target, source(self.target, number))?,
        };
        let text = request_text(number, self.target.size);
        let result = match &mut socket {
            Socket::Tcp(stream) => over_tcp(stream, &text),
            Socket::Udp(socket) => over_udp(self.target, socket, &text),
        };
        self.open = self.target.keepalive.then_some(socket);
        result
    }
}

/// The text of a request, at least `size` bytes long.
pub(crate) fn request_text(number: u64, size: usize) -> String {
    let text = format!("request {number} of {}", std::process::id());
    format!("{text:.<width$}\n", width = size.saturating_sub(1))
}

/// The address to use: mapped into IPv6 if asked for.
pub(crate) fn destination(target: &Target) -> SocketAddr {
    match target.to {
        SocketAddr::V4(v4) if target.v4_mapped => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        other => other,
    }
}

/// The source of a request, if one is given: the address, or a separate port.
pub(crate) fn source(target: &Target, number: u64) -> Option<SocketAddr> {
    let port = target.first_port.map(|first| first.wrapping_add(number as u16));
    target.bind.or_else(|| Some((any(&destination(target)), port?).into()))
}

pub(crate) fn any(like: &SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn open(target: &Target, source: Option<SocketAddr>) -> io::Result<Socket> {
    match target.protocol {
        Protocol::Tcp => Ok(Socket::Tcp(BufReader::new(connect_tcp(target, source)?))),
        Protocol::Udp => {
            let to = destination(target);
            let socket = UdpSocket::bind(source.unwrap_or((any(&to), 0).into()))?;
            socket.set_read_timeout(Some(target.timeout()))?;
            bind_to_device(target, &socket)?;
            if target.connected_udp {
                socket.connect(to)?;
            }
            Ok(Socket::Udp(socket))
        }
    }
}

/// Binds the socket to a network interface if that was asked for.
fn bind_to_device(target: &Target, socket: &impl AsFd) -> io::Result<()> {
    match &target.device {
        Some(device) => Ok(setsockopt(socket, BindToDevice, &device.into())?),
        None => Ok(()),
    }
}

/// A blocking connect, as most programs do it, from a bound socket if asked for.
pub(crate) fn connect_tcp(target: &Target, source: Option<SocketAddr>) -> io::Result<TcpStream> {
    let to = destination(target);
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let timeout = TimeVal::milliseconds(target.timeout_ms as i64);
    // The time to send is the time to connect, too.
    setsockopt(&socket, SendTimeout, &timeout)?;
    setsockopt(&socket, ReceiveTimeout, &timeout)?;
    bind_to_device(target, &socket)?;
    if let Some(address) = source {
        // Connections to others that are in TIME-WAIT do not keep the port.
        setsockopt(&socket, ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn over_tcp(stream: &mut BufReader<TcpStream>, text: &str) -> io::Result<(Answer, SocketAddr)> {
    stream.get_mut().write_all(text.as_bytes())?;
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(Errno::ECONNRESET.into());
    }
    Ok((parse(&line, text)?, stream.get_ref().peer_addr()?))
}

pub(crate) fn over_udp(target: &Target, socket: &UdpSocket, text: &str) -> io::Result<(Answer, SocketAddr)> {
    let mut buffer = [0; 65_536];
    let (length, from) = if let Ok(peer) = socket.peer_addr() {
        socket.send(text.as_bytes())?;
        (socket.recv(&mut buffer)?, peer)
    } else {
        socket.send_to(text.as_bytes(), destination(target))?;
        socket.recv_from(&mut buffer)?
    };
    Ok((parse(&String::from_utf8_lossy(&buffer[..length]), text)?, from))
}

/// The server's answer, if it is the answer to this request.
pub(crate) fn parse(reply: &str, request: &str) -> io::Result<Answer> {
    match reply.split_once('\t') {
        Some((answer, echo)) if echo == request => Ok(serde_json::from_str(answer)?),
        _ => Err(Errno::EBADMSG.into()),
    }
}

/// The name of the error number. EAGAIN at a socket's timeout is shown as a timeout.
pub(crate) fn error_name(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EAGAIN | Errno::EINPROGRESS) => "ETIMEDOUT".to_owned(),
        Some(errno) => format!("{errno:?}"),
        None => error.to_string(),
    }
}
