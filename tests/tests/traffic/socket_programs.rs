//! Sockets that are connected to endpoints that are gone are ended, in whichever network namespace they are.
//!
//! Set-up: no cluster: network namespaces with sockets that are connected to each other, the agent's socket programs in
//! a control group of the test, and its socket termination in this process.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ended;
mod records;

use std::{
    fmt::Debug,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use proxy_agent::{net::sock_diag::Transport, socket_termination::end::Suspect};
use proxy_harness::cluster::Netns;
use proxy_sys::socket::{netns_cookie, socket_cookie};

const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace with a loopback interface, removed at the end.
struct Room(Netns);

impl Room {
    fn new(name: &str) -> Self {
        let room = Self(Netns::create(&format!("sockets-{}-{name}", std::process::id())).unwrap());
        room.0.ip(&["link set lo up".to_owned()]).unwrap();
        room
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.0.run(|| Ok(work()?)).unwrap()
    }

    /// A UDP socket with a peer that takes datagrams and never answers.
    fn udp(&self) -> (UdpSocket, UdpSocket) {
        self.run(|| {
            let server = UdpSocket::bind("127.0.0.1:0")?;
            let client = UdpSocket::bind("127.0.0.1:0")?;
            client.connect(server.local_addr()?)?;
            client.set_read_timeout(Some(PATIENCE))?;
            Ok((client, server))
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = Netns::remove(self.0.name());
    }
}

fn cookie(socket: impl AsFd) -> u64 {
    socket_cookie(socket.as_fd()).unwrap()
}

fn suspect_udp(client: &UdpSocket) -> Suspect {
    Suspect { transport: Transport::Udp, cookie: cookie(client), peer: client.peer_addr().unwrap() }
}

fn is_aborted<T>(result: &io::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionAborted)
}

/// Panics unless the agent ended the socket. The call is repeated when a signal interrupts it: the kernel does that to calls
/// with a timeout whatever the handler's flags.
#[track_caller]
fn assert_aborted<T: Debug>(mut call: impl FnMut() -> io::Result<T>, what: impl Debug) {
    let result = loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => break result,
        }
    };
    assert!(is_aborted(&result), "{what:?}: {result:?}");
}

/// Four clients, and the server.
fn with_the_same_addresses() -> io::Result<(Vec<UdpSocket>, UdpSocket)> {
    let server = UdpSocket::bind("127.0.0.1:0")?;
    let mut clients: Vec<UdpSocket> = Vec::new();
    for _ in 0..4 {
        let port = clients.first().map_or(Ok(0), |first| first.local_addr().map(|addr| addr.port()))?;
        clients.push(reusing_port(port)?);
    }
    // Not in the order in which they were bound, so that they are listed in another order than found.
    for i in [2, 0, 3, 1] {
        clients[i].connect(server.local_addr()?)?;
    }
    Ok((clients, server))
}

fn reusing_port(port: u16) -> io::Result<UdpSocket> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
    };
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
    Ok(fd.into())
}

/// Where servers listen, and where clients connect to, if that is not the same.
const FAMILIES: [(&str, &str, &str); 3] = [
    ("IPv4", "127.0.0.1", "127.0.0.1"),
    ("IPv6", "::1", "::1"),
    ("IPv4 by an IPv6 socket", "127.0.0.1", "::ffff:127.0.0.1"),
];

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}
