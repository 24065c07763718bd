//! By their names.

use std::{
    collections::HashSet,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    ops::ControlFlow,
    os::fd::AsRawFd,
    process::{Child, Command},
    time::{Duration, Instant},
};

use proxy_agent::{
    net::{netns, sock_diag::Transport},
    socket_termination::end::{Outcome, Suspect, Target},
};
use proxy_harness::cluster::until;

use super::{
    FAMILIES, PATIENCE, Room, assert_aborted, at, cookie, netns_cookie, suspect_udp, with_the_same_addresses,
};

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends sockets by their names.
fn end(suspects: &HashSet<Suspect>) -> io::Result<Outcome> {
    proxy_agent::socket_termination::end::end(&suspects.iter().copied().map(Target::Socket).collect(), None)
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
        // Cookie and peer must both match: a socket that connected to something else since is not ended.
        let wrong = [
            Suspect { cookie: cookie(&ours), peer: at(listen, 1), transport: Transport::Udp },
            Suspect { cookie: cookie(&ours), peer, transport: Transport::Tcp },
        ];
        assert_eq!(end(&wrong.into()).unwrap().ended.len(), 0, "{family}");

        let suspect = Suspect { cookie: cookie(&ours), peer, transport: Transport::Udp };
        let outcome = end(&[suspect].into()).unwrap();
        assert_eq!((outcome.ended, outcome.walked.unsupported), ([suspect].into(), false), "{family}");
        assert_aborted(|| ours.recv(&mut [0]), family);

        let to = others.peer_addr().unwrap();
        for client in [&others, &ours] {
            // For `ours` this is the application that connects again.
            client.connect(to).unwrap();
            client.send(b"hello").unwrap();
            let (length, from) = server.recv_from(&mut [0; 8]).unwrap();
            assert_eq!((length, from.port()), (5, client.local_addr().unwrap().port()), "{family}");
        }
    }
}

/// An application that only sends gets an error, too.
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
        assert_aborted(|| ours.read(&mut [0]), family);
        others.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        let reset = accepted[0].read_exact(&mut bytes).map_err(|error| error.kind());
        assert_eq!(reset, Err(ErrorKind::ConnectionReset), "{family}");
        accepted[1].read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello", "{family}");
    }
}

/// Connecting to a pod that is gone.
#[test]
fn an_unanswered_tcp_connection_times_out() {
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
fn a_namespace_that_vanishes_meanwhile_is_not_an_error() {
    let mut rooms: Vec<Room> = (0..5).map(|i| Room::new(&format!("vanish-{i}"))).collect();
    let gone: HashSet<u64> = rooms.iter().map(|room| room.run(netns_cookie)).collect();
    // One without a name, which its process keeps.
    let process = Process(Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap());
    let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
    until(PATIENCE, "a separate namespace", || {
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
