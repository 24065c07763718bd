//! The time that socket hooks add to the system calls of a socket.
//!
//! Two processes in one pod's network namespace take turns: one in the pod's cgroup, where the agent attached its hooks, and one in a
//! cgroup without them. All addresses are of that namespace's loopback device.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket},
    time::{ClockId, clock_gettime},
};
use proxy_harness::{
    cluster::{Cluster, Host},
    kube_proxy::{Endpoint, Port, Service},
};
use serde::{Deserialize, Serialize};

use crate::{
    services::{Where, manifest},
    setup::Follower,
    wire::TARGET_PORT,
};

/// The Service, and where it is reached.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 30);
/// The address of its endpoint.
const ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 200);
/// An address that is no Service's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 201);

/// System calls that are repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Calls {
    /// `socket`, `connect`, `close` of UDP.
    UdpSocket,
    /// `socket`, `connect`, `accept`, `close` of both ends of a TCP connection.
    TcpSocket,
    /// `connect` of the same UDP socket.
    UdpConnect,
    /// `sendto` and `recvfrom` at both ends, of UDP sockets that are not connected.
    Datagrams,
}

impl Calls {
    pub(crate) const ALL: [Self; 4] = [Self::UdpSocket, Self::TcpSocket, Self::UdpConnect, Self::Datagrams];
}

/// A measurement, repeated in rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) calls: Calls,
    /// Whether the address is the Service's.
    pub(crate) is_service: bool,
}

/// CPU time of one repetition in a round, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) without: f64,
    pub(crate) with: f64,
}

/// The pairs of each row, in the order of the rounds.
pub(crate) type Pairs = BTreeMap<Row, Vec<Pair>>;

/// One slice.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    calls: Calls,
    to: SocketAddrV4,
    /// Where the other end listens.
    listen: SocketAddrV4,
    milliseconds: u64,
}

/// How it went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    done: u64,
    /// Of the thread, on the CPU.
    nanoseconds: u64,
    error: Option<String>,
}

/// Measures all rows, the processes in turn.
pub(crate) fn measure(rounds: usize, slice: Duration, cpu: usize) -> Result<Pairs> {
    let cluster = Cluster::builder().nodes(1).pods_per_node(1).build()?;
    let pod = &cluster.node(0)?.pods[0];
    let own = |address| format!("addr add {address}/32 dev lo");
    pod.netns.ip(&[VIP, ENDPOINT, ELSEWHERE].map(own))?;
    // One client makes thousands of connections: its ports must not rest.
    pod.netns.sysctl(&[("ipv4/tcp_max_tw_buckets", "0"), ("ipv4/ip_local_port_range", "1024 65535")])?;
    cluster.manifests.write("services.json", &manifest(&[service()]))?;
    let _agents = cluster.start_agents(&["--pod-datapath", "socket"])?;
    let bare = Host { cgroup: cluster.client.cgroup.clone(), ..pod.clone() };
    let start = |host: &Host| Follower::new(host, &["sockets", "--cpu", &cpu.to_string()]);
    let mut processes = [start(&bare)?, start(pod)?];

    let mut pairs = Pairs::new();
    let services = [true, false].into_iter();
    let rows: Vec<_> =
        services.flat_map(|is_service| Calls::ALL.map(|calls| Row { calls, is_service })).collect();
    for round in 0..=rounds {
        for row in &rows {
            let mut times = [0.0; 2];
            // Another process first each time.
            for turn in 0..2 {
                let at = (turn + round) % 2;
                let order = order(*row, at == 1, slice);
                let Outcome { done, nanoseconds, error } = processes[at].run(&order)?;
                ensure!(error.is_none() && done > 0, "{order:?} after {done}: {error:?}");
                times[at] = nanoseconds as f64 / done as f64;
            }
            let [without, with] = times;
            // The first round fills caches.
            if round > 0 {
                pairs.entry(*row).or_default().push(Pair { without, with });
            }
        }
    }
    Ok(pairs)
}

/// With hooks the other end listens at the endpoint's address alone: what is not translated fails.
fn order(row: Row, has_hooks: bool, slice: Duration) -> Order {
    let to = if row.is_service { VIP } else { ELSEWHERE };
    let listen = if row.is_service && has_hooks { ENDPOINT } else { to };
    let at = |address| SocketAddrV4::new(address, TARGET_PORT);
    Order { calls: row.calls, to: at(to), listen: at(listen), milliseconds: slice.as_millis() as u64 }
}

fn service() -> Service {
    let port = |name, protocol| Port {
        name,
        protocol,
        port: TARGET_PORT,
        target_port: TARGET_PORT,
        node_port: None,
    };
    Service {
        name: "sockets".to_owned(),
        cluster_ip: VIP.into(),
        ports: vec![port("stream", "tcp"), port("datagram", "udp")],
        endpoints: vec![Endpoint { address: ENDPOINT.into(), node: Where::Local.node() }],
    }
}

/// Follows the orders on standard input, one a line, until there are no more; prints the result of each.
pub(crate) fn follow_orders() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let mut outcome = Outcome::default();
        outcome.error = run(&order, &mut outcome).err().map(|error| format!("{error:#}"));
        writeln!(io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    }
    Ok(())
}

fn run(order: &Order, outcome: &mut Outcome) -> Result<()> {
    let Order { calls, to, listen, .. } = *order;
    match calls {
        Calls::UdpSocket => {
            check_peer(to)?;
            repeat(order, outcome, || connect_to(&udp()?, to))
        }
        Calls::UdpConnect => {
            check_peer(to)?;
            let socket = udp()?;
            repeat(order, outcome, || connect_to(&socket, to))
        }
        Calls::TcpSocket => {
            let listener = TcpListener::bind(listen)?;
            repeat(order, outcome, || {
                let client = TcpStream::connect(to)?;
                let (server, _) = listener.accept()?;
                drop(client);
                drop(server);
                Ok(())
            })
        }
        Calls::Datagrams => {
            let [client, server] = [UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, UdpSocket::bind(listen)?];
            client.set_read_timeout(Some(Duration::from_secs(2)))?;
            server.set_read_timeout(Some(Duration::from_secs(2)))?;
            let mut byte = [0];
            repeat(order, outcome, || {
                client.send_to(&byte, to)?;
                let (_, from) = server.recv_from(&mut byte)?;
                server.send_to(&byte, from)?;
                let (_, from) = client.recv_from(&mut byte)?;
                ensure!(from == to.into(), "the reply came from {from}");
                Ok(())
            })
        }
    }
}

/// Until the time is up; the thread's time on the CPU counts.
fn repeat(order: &Order, outcome: &mut Outcome, mut calls: impl FnMut() -> Result<()>) -> Result<()> {
    /// The clock is read so seldom that this takes no time.
    const BATCH: u64 = 16;
    let end = Instant::now() + Duration::from_millis(order.milliseconds);
    let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    while Instant::now() < end {
        for _ in 0..BATCH {
            calls()?;
        }
        outcome.done += BATCH;
    }
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before;
    outcome.nanoseconds = Duration::from(time).as_nanos() as u64;
    Ok(())
}

/// A connected socket shows the address that it requested.
fn check_peer(to: SocketAddrV4) -> Result<()> {
    let socket = udp()?;
    connect_to(&socket, to)?;
    let peer = UdpSocket::from(socket).peer_addr().context("no peer")?;
    ensure!(peer == to.into(), "{to} shows as {peer}");
    Ok(())
}

fn udp() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn connect_to(socket: &OwnedFd, to: SocketAddrV4) -> Result<()> {
    Ok(connect(socket.as_raw_fd(), &SockaddrIn::from(to))?)
}
