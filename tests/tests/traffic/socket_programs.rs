//! Sockets that are connected to endpoints that are gone are ended, in whichever network namespace they are.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    ops::ControlFlow,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::Result;
use proxy_agent::{
    cli::{PortRange, XdpMode},
    datapath::{Datapath, Kept, LostFrontend, ObjectConfig, maps::MapFamily, pins::Pins},
    model::objects::Protocol,
    net::{netns, sock_diag::Transport},
    reaper::{
        Counts, Reaper, Records,
        end::{Outcome, Suspect, Target},
    },
};
use proxy_common::{
    V4, V6,
    layout::{
        config::Timeouts,
        id::Id,
        socket::{ConnectedPeer, SharedKey, SharedPeer, SocketDirection, SocketKey, SocketPeer},
    },
};
use proxy_tests::cluster::{Netns, until};

const PATIENCE: Duration = Duration::from_secs(10);

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

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A socket option of 64 bits.
fn option(socket: impl AsFd, name: libc::c_int) -> u64 {
    let mut value = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the buffer has the length that is given.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value
}

fn cookie(socket: impl AsFd) -> u64 {
    option(socket, libc::SO_COOKIE)
}

fn netns_cookie() -> io::Result<u64> {
    Ok(option(UdpSocket::bind("0.0.0.0:0")?, libc::SO_NETNS_COOKIE))
}

fn suspect_udp(client: &UdpSocket) -> Suspect {
    Suspect { transport: Transport::Udp, cookie: cookie(client), peer: client.peer_addr().unwrap() }
}

/// Ends sockets by their names.
fn end(suspects: &HashSet<Suspect>) -> io::Result<Outcome> {
    proxy_agent::reaper::end::end(&suspects.iter().copied().map(Target::Socket).collect(), None)
}

fn is_aborted<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::ConnectionAborted)
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

#[test]
fn udp_sockets_that_are_ours_are_ended_and_can_connect_again() {
    let room = Room::new("udp");
    for (family, listen, connect) in FAMILIES {
        let (server, ours, others) = room.run(|| {
            let server = UdpSocket::bind(at(listen, 0))?;
            let to = at(connect, server.local_addr()?.port());
            let client = || {
                let client = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
                client.connect(to)?;
                client.set_read_timeout(Some(PATIENCE))?;
                Ok::<_, io::Error>(client)
            };
            Ok((server, client()?, client()?))
        });
        let peer = server.local_addr().unwrap();
        // Cookie and peer have to fit: who connected to something else since is not meant.
        let wrong = [
            Suspect { cookie: cookie(&ours), peer: at(listen, 1), transport: Transport::Udp },
            Suspect { cookie: cookie(&ours), peer, transport: Transport::Tcp },
        ];
        assert_eq!(end(&wrong.into()).unwrap().ended.len(), 0, "{family}");

        let suspect = Suspect { cookie: cookie(&ours), peer, transport: Transport::Udp };
        let outcome = end(&[suspect].into()).unwrap();
        assert_eq!((outcome.ended, outcome.walked.unsupported), ([suspect].into(), false), "{family}");
        assert!(is_aborted(ours.recv(&mut [0])), "{family}");

        let to = others.peer_addr().unwrap();
        for client in [&others, &ours] {
            // For `ours` this is the application that connects anew.
            client.connect(to).unwrap();
            client.send(b"hello").unwrap();
            let (length, from) = server.recv_from(&mut [0; 8]).unwrap();
            assert_eq!((length, from.port()), (5, client.local_addr().unwrap().port()), "{family}");
        }
    }
}

/// What an application sees that only sends, too.
#[test]
fn an_ended_udp_socket_has_no_peer() {
    let room = Room::new("send");
    let (client, _server) = room.udp();
    end(&[suspect_udp(&client)].into()).unwrap();
    assert_eq!(client.send(b"lost").unwrap_err().raw_os_error(), Some(libc::EDESTADDRREQ));
    assert_eq!(client.take_error().unwrap().map(|error| error.kind()), Some(ErrorKind::ConnectionAborted));
}

#[test]
fn tcp_connections_that_are_ours_are_reset() {
    let room = Room::new("tcp");
    for (family, listen, connect) in FAMILIES {
        let (server, mut ours, mut others) = room.run(|| {
            let server = TcpListener::bind(at(listen, 0))?;
            let to = at(connect, server.local_addr()?.port());
            Ok((server, TcpStream::connect(to)?, TcpStream::connect(to)?))
        });
        let peer = server.local_addr().unwrap();
        let mut accepted = [server.accept().unwrap().0, server.accept().unwrap().0];
        let suspect = Suspect { cookie: cookie(&ours), peer, transport: Transport::Tcp };
        let outcome = end(&[suspect].into()).unwrap();
        assert_eq!(outcome.ended, [suspect].into(), "{family}");
        assert!(is_aborted(ours.read(&mut [0])), "{family}");
        others.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        let reset = accepted[0].read_exact(&mut bytes).map_err(|error| error.kind());
        assert_eq!(reset, Err(ErrorKind::ConnectionReset), "{family}");
        accepted[1].read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello", "{family}");
    }
}

/// What connecting to a pod that is gone looks like.
#[test]
fn a_tcp_connection_that_nobody_answers_is_given_up() {
    use nix::{errno::Errno, sys::socket::*};
    let room = Room::new("syn");
    let lines =
        ["link add eth0 type veth peer name eth1", "addr add 10.9.9.1/24 dev eth0", "link set eth0 up"];
    room.0.ip(&lines.map(str::to_owned)).unwrap();
    let client: TcpStream = room.run(|| {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        let connected = connect(fd.as_raw_fd(), &SockaddrIn::new(10, 9, 9, 2, 80));
        assert_eq!(connected, Err(Errno::EINPROGRESS));
        Ok(fd.into())
    });
    let suspect = Suspect { transport: Transport::Tcp, cookie: cookie(&client), peer: at("10.9.9.2", 80) };
    assert_eq!(end(&[suspect].into()).unwrap().ended, [suspect].into());
    assert_eq!(client.take_error().unwrap().map(|error| error.kind()), Some(ErrorKind::ConnectionAborted));
}

/// The kernel finds the socket to end by its addresses, and gives one of several that have the same.
#[test]
fn sockets_with_the_same_addresses_are_all_ended() {
    let room = Room::new("reuse");
    let (clients, _server) = room.run(with_the_same_addresses);
    let suspects: HashSet<Suspect> = clients.iter().map(suspect_udp).collect();
    assert_eq!(end(&suspects).unwrap().ended, suspects);
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

#[test]
fn each_of_fifty_namespaces_is_walked_through_once() {
    const ROOMS: usize = 50;
    let rooms: Vec<Room> = (0..ROOMS).map(|i| Room::new(&format!("many-{i}"))).collect();
    let expected: HashSet<u64> = rooms.iter().map(|room| room.run(netns_cookie)).collect();
    assert_eq!(expected.len(), ROOMS);
    let mut walked = Vec::new();
    let walk = netns::walk(|| {
        walked.push(netns_cookie().unwrap());
        ControlFlow::Continue(())
    })
    .unwrap();
    let distinct: HashSet<u64> = walked.iter().copied().collect();
    assert_eq!((distinct.len(), walk.entered), (walked.len(), walked.len()), "each once");
    assert!(distinct.is_superset(&expected));
    assert_eq!(walked[0], netns_cookie().unwrap(), "our own comes first");

    let sockets: Vec<_> = rooms.iter().map(Room::udp).collect();
    let suspects: HashSet<Suspect> = sockets.iter().map(|(client, _)| suspect_udp(client)).collect();
    let started = Instant::now();
    let outcome = end(&suspects).unwrap();
    let took = started.elapsed();
    println!("{} namespaces, {} sockets ended: {took:?}", outcome.walked.namespaces, outcome.ended.len());
    assert_eq!(outcome.ended, suspects);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_namespace_that_vanishes_meanwhile_is_no_error() {
    let mut rooms: Vec<Room> = (0..5).map(|i| Room::new(&format!("vanish-{i}"))).collect();
    let gone: HashSet<u64> = rooms.iter().map(|room| room.run(netns_cookie)).collect();
    // One without a name, which its process keeps.
    let process = Process(Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap());
    let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
    until(PATIENCE, "a namespace of its own", || {
        Ok((link(&process.0.id().to_string())? != link("self")?).then_some(()))
    })
    .unwrap();
    let mut process = Some(process);
    // Where not even root may look at each process.
    let denied = netns::walk(|| ControlFlow::Continue(())).unwrap().failed;
    let mut walked = HashSet::new();
    let walk = netns::walk(|| {
        rooms.clear();
        drop(process.take());
        walked.insert(netns_cookie().unwrap());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(walk.failed, denied);
    assert!(walked.is_disjoint(&gone));
}

#[test]
fn addresses_are_known_by_namespace() {
    let room = Room::new("addresses");
    let lines = [
        "link add eth0 type veth peer name eth1",
        "addr add 169.254.7.7/16 dev eth0",
        "addr add 10.9.8.7/24 dev eth0",
        "addr add 10.9.8.8/24 dev eth0",
        "addr add fd00:9::7/64 dev eth0 nodad",
        "addr add 10.1.1.1/32 dev lo",
        "link set eth0 up",
        "link set eth1 up",
    ];
    room.0.ip(&lines.map(str::to_owned)).unwrap();
    let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
    let found = netns::addresses(&ips(&["192.0.2.1", "192.0.2.2", "2001:db8::1"])).unwrap();
    assert_eq!(found[&room.run(netns_cookie)], ips(&["10.9.8.7", "fd00:9::7"]));
    assert_eq!(found[&netns_cookie().unwrap()], ips(&["192.0.2.1", "2001:db8::1"]), "the node's own");
}

/// Backends.
const DEAD: Id = Id::new(1, 1);
const ALIVE: Id = Id::new(2, 1);
/// The service port that all sockets asked for, and where.
const SERVICE: Id = Id::new(1, 1);
const VIPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];

/// Where the programs write what a connected socket got.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Sockets keep it themselves.
    Storage,
    /// Notes, on kernels without socket storage.
    Notes,
}

/// Maps as the agent and its programs have them; nothing is attached.
struct Maps {
    pins: Pins,
    how: How,
    datapath: Datapath,
}

impl Maps {
    fn new(name: &str, how: How) -> Self {
        let name = format!("sockets-{}-{name}-{how:?}", std::process::id());
        let pins = Pins::new(&Path::new("/sys/fs/bpf").join(name));
        let config = ObjectConfig {
            snat_ports: PortRange { first: 20000, last: 29999 },
            snat_addresses: Vec::new(),
            external_cluster_ips: false,
            sockets_of_node_only: false,
            max_flows: 1024,
            timeouts: Timeouts::DEFAULT,
            reset_removed_tcp: true,
            reject_with_reset: false,
            localhost_nodeports: true,
            kernel_log: None,
        };
        let datapath = Datapath::open(&config, &pins, XdpMode::Off).unwrap();
        Self { pins, how, datapath }
    }

    fn reaper(&mut self, counts: Counts) -> Result<Reaper> {
        let records = match self.how {
            How::Storage => Records::Sockets(self.datapath.socket_reader()?.unwrap()),
            How::Notes => Records::Notes(self.pins.clone()),
        };
        Ok(Reaper::start(records, counts))
    }

    /// What the programs write when a socket connects to a VIP.
    fn keep(&self, socket: &(impl AsFd + AsRawFd), backend: SocketAddr, id: Id) {
        match backend.ip() {
            IpAddr::V4(_) => self.keep_as::<V4>(socket, VIPS[0], backend, id),
            IpAddr::V6(_) => self.keep_as::<V6>(socket, VIPS[1], backend, id),
        }
    }

    fn keep_as<F: MapFamily>(&self, socket: &(impl AsFd + AsRawFd), vip: &str, backend: SocketAddr, id: Id) {
        let addr = |ip| F::from_ip(ip).unwrap();
        let (vip, vip_port) = (addr(vip.parse().unwrap()), 53u16.to_be());
        let (ip, port) = (addr(backend.ip()), backend.port().to_be());
        match self.how {
            How::Storage => {
                let service = SERVICE;
                let peer = ConnectedPeer::<F> {
                    vip,
                    backend: ip,
                    vip_port,
                    backend_port: port,
                    backend_id: id,
                    service,
                };
                F::peers(&self.pins).unwrap().insert(socket, peer, 0).unwrap();
            }
            How::Notes => {
                let key = SocketKey::<F>::new(cookie(socket), ip, port, SocketDirection::Receive);
                let answer =
                    SocketPeer { addr: vip, port: vip_port, checked: 0, backend: id, service: SERVICE };
                let place = SharedKey::new(1, key.bucket());
                F::sockets(&self.pins).unwrap().insert(place, SharedPeer::new(key, answer), 0).unwrap();
            }
        }
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        let _ = self.pins.remove_all();
    }
}

/// Waits until that many were counted, so until the walk is over.
async fn ended(counts: &Counts, number: u64) -> Result<()> {
    let counted = async {
        while counts.ended.get() < number {
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(PATIENCE, counted).await?)
}

async fn received(socket: UdpSocket) -> io::Result<usize> {
    tokio::task::spawn_blocking(move || socket.recv(&mut [0])).await?
}

fn is_untouched(socket: &UdpSocket) -> bool {
    socket.peer_addr().is_ok() && socket.take_error().unwrap().is_none()
}

#[tokio::test]
async fn sockets_of_dead_endpoints_are_ended_even_if_they_connect_late() -> Result<()> {
    for how in [How::Storage, How::Notes] {
        let mut maps = Maps::new("dead", how);
        let room = Room::new("dead");
        let ((ours, server), (others, _other_server)) = (room.udp(), room.udp());
        let [direct, late, moved] = [(); 3].map(|()| room.run(|| UdpSocket::bind("127.0.0.1:0")));
        late.set_read_timeout(Some(PATIENCE))?;
        let backend = server.local_addr()?;
        direct.connect(backend)?;
        maps.keep(&ours, backend, DEAD);
        maps.keep(&others, others.peer_addr()?, ALIVE);
        // Its thread was stopped between program and kernel.
        maps.keep(&late, backend, DEAD);
        // No program saw it connect elsewhere, or what it kept would be gone.
        maps.keep(&moved, backend, DEAD);
        moved.connect(others.peer_addr()?)?;

        let counts = Counts::default();
        let reaper = maps.reaper(counts.clone())?;
        reaper.dead([(Protocol::Udp, DEAD)]);
        assert!(is_aborted(received(ours).await), "{how:?}");
        ended(&counts, 1).await?;
        late.connect(backend)?;
        assert!(is_aborted(received(late).await), "{how:?}");
        ended(&counts, 2).await?;
        for (socket, why) in [
            (&direct, "it asked for the endpoint itself"),
            (&moved, "it is connected elsewhere"),
            (&others, "its endpoint serves"),
        ] {
            assert!(is_untouched(socket), "{how:?}: {why}");
        }
    }
    Ok(())
}

/// What a socket keeps that asked for the VIP of a family.
fn kept(family: usize, backend: Id) -> Kept {
    Kept { vip: at(VIPS[family], 53), service: SERVICE, backend }
}

/// The endpoint serves on; the address is another Service's now.
#[tokio::test]
async fn udp_sockets_of_lost_frontends_are_ended() -> Result<()> {
    for how in [How::Storage, How::Notes] {
        let mut maps = Maps::new("lost", how);
        let room = Room::new("lost");
        for (family, listen, to) in FAMILIES {
            let (server, [ours, direct], tcp_server, tcp) = room.run(|| {
                let server = UdpSocket::bind(at(listen, 0))?;
                let port = server.local_addr()?.port();
                let client = || {
                    let client = UdpSocket::bind(at(if to == "127.0.0.1" { "0.0.0.0" } else { "::" }, 0))?;
                    client.connect(at(to, port))?;
                    client.set_read_timeout(Some(PATIENCE))?;
                    Ok::<_, io::Error>(client)
                };
                let tcp_server = TcpListener::bind(at(listen, 0))?;
                let tcp = TcpStream::connect(at(to, tcp_server.local_addr()?.port()))?;
                Ok((server, [client()?, client()?], tcp_server, tcp))
            });
            maps.keep(&ours, server.local_addr()?, ALIVE);
            maps.keep(&tcp, tcp_server.local_addr()?, ALIVE);
            let vip = at(VIPS[usize::from(listen == "::1")], 53);
            let counts = Counts::default();
            let reaper = maps.reaper(counts.clone())?;
            // Another Service's, another port, another address.
            reaper.lost([
                LostFrontend { service: Id::new(2, 1), address: vip },
                LostFrontend { service: SERVICE, address: SocketAddr::new(vip.ip(), 54) },
                LostFrontend { service: SERVICE, address: at("192.0.2.1", 53) },
            ]);
            // So that the walk is over.
            let (other, other_server) = room.udp();
            maps.keep(&other, other_server.local_addr()?, DEAD);
            reaper.dead([(Protocol::Udp, DEAD)]);
            ended(&counts, 1).await?;
            assert!(is_untouched(&ours), "{how:?}, {family}");
            reaper.lost([LostFrontend { service: SERVICE, address: vip }]);
            assert!(is_aborted(received(ours).await), "{how:?}, {family}");
            ended(&counts, 2).await?;
            assert!(is_untouched(&direct), "{how:?}, {family}: it asked for the endpoint itself");
            assert!(tcp.take_error()?.is_none() && tcp.peer_addr().is_ok(), "{how:?}, {family}: TCP goes on");
        }
    }
    Ok(())
}

/// The storage of an IPv6 socket that talks to IPv4 is that of IPv4.
#[test]
fn what_sockets_keep_is_found_for_each_family_and_protocol() {
    let mut maps = Maps::new("families", How::Storage);
    let reader = maps.datapath.socket_reader().unwrap();
    let end = |transport| {
        let targets = [Target::Backend(transport, DEAD)].into();
        proxy_agent::reaper::end::end(&targets, reader.as_ref()).unwrap().ended.len()
    };
    let room = Room::new("families");
    for (family, listen, connect) in FAMILIES {
        let (udp_server, udp) = room.run(|| {
            let server = UdpSocket::bind(at(listen, 0))?;
            let to = at(connect, server.local_addr()?.port());
            let client = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
            client.connect(to)?;
            client.set_read_timeout(Some(PATIENCE))?;
            Ok((server, client))
        });
        let (tcp_server, mut tcp) = room.run(|| {
            let server = TcpListener::bind(at(listen, 0))?;
            let client = TcpStream::connect(at(connect, server.local_addr()?.port()))?;
            client.set_read_timeout(Some(PATIENCE))?;
            Ok((server, client))
        });
        maps.keep(&udp, udp_server.local_addr().unwrap(), ALIVE);
        maps.keep(&tcp, tcp_server.local_addr().unwrap(), ALIVE);
        assert_eq!((end(Transport::Udp), end(Transport::Tcp)), (0, 0), "{family}");
        maps.keep(&udp, udp_server.local_addr().unwrap(), DEAD);
        maps.keep(&tcp, tcp_server.local_addr().unwrap(), DEAD);
        assert_eq!(end(Transport::Udp), 1, "{family}");
        assert!(is_aborted(udp.recv(&mut [0])), "{family}");
        assert_eq!(end(Transport::Tcp), 1, "{family}");
        assert!(is_aborted(tcp.read(&mut [0])), "{family}");
    }
}

/// The kernel finds one of them. It has to be ours, and when it is gone the next may not be.
#[test]
fn of_sockets_with_the_same_addresses_only_ours_are_ended() -> Result<()> {
    let mut maps = Maps::new("reuse", How::Storage);
    for direct in [None, Some(0), Some(1), Some(2), Some(3)] {
        let room = Room::new("reuse-storage");
        let (clients, server) = room.run(with_the_same_addresses);
        let is_ours = |i: usize| Some(i) != direct;
        for (_, client) in clients.iter().enumerate().filter(|(i, _)| is_ours(*i)) {
            maps.keep(client, server.local_addr()?, DEAD);
        }
        let targets = [Target::Backend(Transport::Udp, DEAD)].into();
        let reader = maps.datapath.socket_reader()?;
        let outcome = proxy_agent::reaper::end::end(&targets, reader.as_ref())?;
        let is_ended = |i: &usize| is_aborted(clients[*i].take_error().and_then(|it| it.map_or(Ok(()), Err)));
        let ended: Vec<usize> = (0..clients.len()).filter(is_ended).collect();
        assert!(ended.iter().all(|i| is_ours(*i)), "{direct:?}: {ended:?}");
        assert_eq!(ended.len(), outcome.ended.len());
        if direct.is_none() {
            assert_eq!(ended.len(), 4);
        }
    }
    Ok(())
}

/// After a restart.
#[tokio::test]
async fn a_sweep_ends_what_an_earlier_agent_left() -> Result<()> {
    for how in [How::Storage, How::Notes] {
        let mut maps = Maps::new("sweep", how);
        let room = Room::new("sweep");
        let ((dead, _), (alive, _keep)) = (room.udp(), room.udp());
        maps.keep(&dead, dead.peer_addr()?, DEAD);
        maps.keep(&alive, alive.peer_addr()?, ALIVE);
        let reaper = maps.reaper(Counts::default())?;
        let found = reaper.kept(&[Protocol::Udp]).await?;
        assert_eq!(found, [kept(0, DEAD), kept(0, ALIVE)].into(), "{how:?}");
        reaper.dead([(Protocol::Udp, DEAD)]);
        assert!(is_aborted(received(dead).await), "{how:?}");
        assert!(is_untouched(&alive), "{how:?}");
    }
    Ok(())
}

/// Its thread was stopped between program and kernel while the agent looked.
#[tokio::test]
async fn backends_of_sockets_that_connect_late_are_known_after_a_restart() -> Result<()> {
    let mut maps = Maps::new("late", How::Storage);
    let room = Room::new("late");
    let (late, server) = room.run(|| Ok((UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("127.0.0.1:0")?)));
    maps.keep(&late, server.local_addr()?, DEAD);
    let reaper = maps.reaper(Counts::default())?;
    let looking = tokio::spawn(async move { reaper.kept(&[Protocol::Udp]).await });
    // The first look is over long before the second.
    tokio::time::sleep(Duration::from_millis(500)).await;
    late.connect(server.local_addr()?)?;
    assert_eq!(looking.await??, [kept(0, DEAD)].into());
    Ok(())
}
