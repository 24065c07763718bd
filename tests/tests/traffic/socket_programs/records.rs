//! By the records of sockets: in cells, in their storage, or in notes on kernels without it.

use std::{
    fmt::Debug,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    time::Duration,
};

use anyhow::Result;
use proxy_agent::{
    datapath::{Datapath, Kept, LostFrontend, ObjectConfig, XdpMode, maps::MapFamily, pins::Pins},
    model::objects::Protocol,
    net::{ports::PortRange, sock_diag::Transport},
    socket_termination::{Counts, Records, SocketTerminator, end::Target},
};
use proxy_common::{
    V4, V6,
    layout::{
        config::Timeouts,
        id::Id,
        socket::{ConnectedPeer, PeerCell, SharedKey, SharedPeer, SocketDirection, SocketKey, SocketPeer},
    },
};

use super::{FAMILIES, PATIENCE, Room, assert_aborted, at, cookie, is_aborted, with_the_same_addresses};

/// Backends.
const DEAD: Id = Id::new(1, 1);
const ALIVE: Id = Id::new(2, 1);

/// The service port that all sockets asked for, and where.
const SERVICE: Id = Id::new(1, 1);
const VIPS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];

/// Where the programs write the translation of a connected socket.
#[derive(Clone, Copy, Debug)]
enum How {
    /// The socket has its cell.
    Cell,
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

    fn socket_termination(&mut self, counts: Counts) -> Result<SocketTerminator> {
        let records = match self.how {
            How::Cell | How::Storage => Records::Sockets(self.datapath.socket_reader()?.unwrap()),
            How::Notes => Records::Notes(self.pins.clone()),
        };
        Ok(SocketTerminator::start(records, counts))
    }

    /// The programs' record when a socket connects to a VIP.
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
            How::Cell | How::Storage => {
                let service = SERVICE;
                let peer = ConnectedPeer::<F> {
                    vip,
                    backend: ip,
                    vip_port,
                    backend_port: port,
                    backend_id: id,
                    service,
                };
                if matches!(self.how, How::Storage) {
                    F::connected(&self.pins).unwrap().insert(socket, peer).unwrap();
                    return;
                }
                let (cookie, mut cells) = (cookie(socket), F::peer_cells(&self.pins).unwrap());
                let index = PeerCell::<F>::index(cookie);
                let owner = cells.element(index).unwrap().owner();
                assert!(owner.is_none_or(|owner| owner == cookie), "the cell is another socket's");
                cells.set(index, PeerCell::new(cookie, peer)).unwrap();
            }
            How::Notes => {
                let key = SocketKey::<F>::new(cookie(socket), ip, port, SocketDirection::Receive);
                let answer =
                    SocketPeer { addr: vip, port: vip_port, checked: 0, backend: id, service: SERVICE };
                let place = SharedKey::new(1, key.bucket());
                F::sockets(&self.pins).unwrap().insert(&place, &SharedPeer::new(key, answer)).unwrap();
            }
        }
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        let _ = self.pins.remove_all();
    }
}

/// Waits until that many were counted, so until the walk has ended.
async fn ended(counts: &Counts, number: u64) -> Result<()> {
    let counted = async {
        while counts.ended.get() < number {
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(PATIENCE, counted).await?)
}

/// Waits until the agent ended the socket.
async fn assert_ended(socket: UdpSocket, what: impl Debug + Send + 'static) -> Result<()> {
    Ok(tokio::task::spawn_blocking(move || assert_aborted(|| socket.recv(&mut [0]), what)).await?)
}

fn is_untouched(socket: &UdpSocket) -> bool {
    socket.peer_addr().is_ok() && socket.take_error().unwrap().is_none()
}

#[tokio::test]
async fn sockets_of_dead_endpoints_are_ended_even_if_they_connect_late() -> Result<()> {
    for how in [How::Cell, How::Storage, How::Notes] {
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
        // No program saw it connect elsewhere, or its record would be gone.
        maps.keep(&moved, backend, DEAD);
        moved.connect(others.peer_addr()?)?;

        let counts = Counts::default();
        let socket_termination = maps.socket_termination(counts.clone())?;
        socket_termination.dead([(Protocol::Udp, DEAD)]);
        assert_ended(ours, how).await?;
        ended(&counts, 1).await?;
        late.connect(backend)?;
        assert_ended(late, (how, "it connected late")).await?;
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

/// The record of a socket that connected to the VIP of a family.
fn kept(family: usize, backend: Id) -> Kept {
    Kept { vip: at(VIPS[family], 53), service: SERVICE, backend }
}

/// The endpoint serves on; the address is another Service's now.
#[tokio::test]
async fn udp_sockets_of_lost_frontends_are_ended() -> Result<()> {
    for how in [How::Cell, How::Storage, How::Notes] {
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
            let socket_termination = maps.socket_termination(counts.clone())?;
            // Another Service's, another port, another address.
            socket_termination.lost([
                LostFrontend { service: Id::new(2, 1), address: vip },
                LostFrontend { service: SERVICE, address: SocketAddr::new(vip.ip(), 54) },
                LostFrontend { service: SERVICE, address: at("192.0.2.1", 53) },
            ]);
            // Wait until the walk has ended.
            let (other, other_server) = room.udp();
            maps.keep(&other, other_server.local_addr()?, DEAD);
            socket_termination.dead([(Protocol::Udp, DEAD)]);
            ended(&counts, 1).await?;
            assert!(is_untouched(&ours), "{how:?}, {family}");
            socket_termination.lost([LostFrontend { service: SERVICE, address: vip }]);
            assert_ended(ours, (how, family)).await?;
            ended(&counts, 2).await?;
            assert!(is_untouched(&direct), "{how:?}, {family}: it asked for the endpoint itself");
            assert!(
                tcp.take_error()?.is_none() && tcp.peer_addr().is_ok(),
                "{how:?}, {family}: TCP continues"
            );
        }
    }
    Ok(())
}

/// The record of an IPv6 socket that talks to IPv4 is that of IPv4.
#[test]
fn what_sockets_keep_is_found_for_each_family_and_protocol() {
    [How::Cell, How::Storage].into_iter().for_each(is_found_for_each_family_and_protocol);
}

fn is_found_for_each_family_and_protocol(how: How) {
    let mut maps = Maps::new("families", how);
    let reader = maps.datapath.socket_reader().unwrap();
    let end = |transport| {
        let targets = [Target::Backend(transport, DEAD)].into();
        proxy_agent::socket_termination::end::end(&targets, reader.as_ref()).unwrap().ended.len()
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
        assert_aborted(|| udp.recv(&mut [0]), family);
        assert_eq!(end(Transport::Tcp), 1, "{family}");
        assert_aborted(|| tcp.read(&mut [0]), family);
    }
}

/// The kernel finds one of them. It has to be ours, and when it is gone the next may not be.
#[test]
fn of_sockets_with_the_same_addresses_only_ours_are_ended() -> Result<()> {
    use How::{Cell, Storage};
    let mixed = [[Cell, Storage, Cell, Storage], [Storage, Cell, Storage, Cell]];
    [[Cell; 4], [Storage; 4]].into_iter().chain(mixed).try_for_each(only_ours_are_ended)
}

/// `how` the record of each is kept.
fn only_ours_are_ended(how: [How; 4]) -> Result<()> {
    let mut maps = Maps::new("reuse", how[0]);
    for direct in [None, Some(0), Some(1), Some(2), Some(3)] {
        let room = Room::new("reuse-storage");
        let (clients, server) = room.run(with_the_same_addresses);
        let is_ours = |i: usize| Some(i) != direct;
        for (i, client) in clients.iter().enumerate().filter(|(i, _)| is_ours(*i)) {
            maps.how = how[i];
            maps.keep(client, server.local_addr()?, DEAD);
        }
        let targets = [Target::Backend(Transport::Udp, DEAD)].into();
        let reader = maps.datapath.socket_reader()?;
        let outcome = proxy_agent::socket_termination::end::end(&targets, reader.as_ref())?;
        let is_ended =
            |i: &usize| is_aborted(&clients[*i].take_error().and_then(|it| it.map_or(Ok(()), Err)));
        let ended: Vec<usize> = (0..clients.len()).filter(is_ended).collect();
        assert!(ended.iter().all(|i| is_ours(*i)), "{how:?}, {direct:?}: {ended:?}");
        assert_eq!(ended.len(), outcome.ended.len());
        if direct.is_none() {
            assert_eq!(ended.len(), 4, "{how:?}");
        }
    }
    Ok(())
}

/// An earlier release's programs, which know no cells, write to storage alone, and neither empty nor overwrite a cell.
#[test]
fn the_record_of_the_peer_counts() -> Result<()> {
    for in_cell in [DEAD, ALIVE] {
        let mut maps = Maps::new("both", How::Cell);
        let room = Room::new("both");
        let ((ours, server), (_other, other_server)) = (room.udp(), room.udp());
        maps.keep(&ours, other_server.local_addr()?, in_cell);
        maps.how = How::Storage;
        maps.keep(&ours, server.local_addr()?, if in_cell == DEAD { ALIVE } else { DEAD });
        let targets = [Target::Backend(Transport::Udp, DEAD)].into();
        let outcome =
            proxy_agent::socket_termination::end::end(&targets, maps.datapath.socket_reader()?.as_ref())?;
        assert_eq!(outcome.ended.len(), usize::from(in_cell == ALIVE), "{in_cell:?} in the cell");
    }
    Ok(())
}

/// After a restart.
#[tokio::test]
async fn a_sweep_ends_what_an_earlier_agent_left() -> Result<()> {
    for how in [How::Cell, How::Storage, How::Notes] {
        let mut maps = Maps::new("sweep", how);
        let room = Room::new("sweep");
        let ((dead, _), (alive, _keep)) = (room.udp(), room.udp());
        maps.keep(&dead, dead.peer_addr()?, DEAD);
        maps.keep(&alive, alive.peer_addr()?, ALIVE);
        let socket_termination = maps.socket_termination(Counts::default())?;
        let found = socket_termination.kept(&[Protocol::Udp]).await?;
        assert_eq!(found, [kept(0, DEAD), kept(0, ALIVE)].into(), "{how:?}");
        socket_termination.dead([(Protocol::Udp, DEAD)]);
        assert_ended(dead, how).await?;
        assert!(is_untouched(&alive), "{how:?}");
    }
    Ok(())
}

/// Its thread was stopped between program and kernel while the agent looked.
#[tokio::test]
async fn backends_of_sockets_that_connect_late_are_known_after_a_restart() -> Result<()> {
    for how in [How::Cell, How::Storage] {
        let mut maps = Maps::new("late", how);
        let room = Room::new("late");
        let (late, server) =
            room.run(|| Ok((UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("127.0.0.1:0")?)));
        maps.keep(&late, server.local_addr()?, DEAD);
        let socket_termination = maps.socket_termination(Counts::default())?;
        let looking = tokio::spawn(async move { socket_termination.kept(&[Protocol::Udp]).await });
        // The first walk ends long before the second begins.
        tokio::time::sleep(Duration::from_millis(500)).await;
        late.connect(server.local_addr()?)?;
        assert_eq!(looking.await??, [kept(0, DEAD)].into());
    }
    Ok(())
}
