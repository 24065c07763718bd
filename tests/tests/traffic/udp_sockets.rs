//! UDP sockets that go on: others do not push them out, and they follow an address to another Service.
//!
//! Set-up: two nodes with two routed pods each, pods served by sockets; one socket sends to many destinations, or an
//! address moves from one Service to another.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::{
    datapath::{maps::MapFamily, peer_cells, pins::Pins},
    net::processes::for_each_socket,
};
use proxy_common::{
    V4, V6,
    layout::socket::{CELLS, ConnectedPeer, PeerCell},
};
use proxy_harness::{
    cluster::{Cluster, Endpoint, Host, Load, Protocol, Service, until},
    traffic::{EMPTY, Entry, HAIRPIN, HOST_NETWORK, SERVICE_PORT, Scenario, TARGET_PORT, WEB},
};
use proxy_sys::socket::socket_cookie;

/// How soon a socket must have followed.
const SOON: Duration = Duration::from_secs(3);

fn start() -> Result<Scenario> {
    Scenario::start(Cluster::builder().nodes(2), "socket", &[])
}

/// A pod opens sockets, far more than any map has room for, while another's socket waits for its replies: those still come
/// from where it sent to. One socket sends to a single address, another to more than it can keep itself.
#[test]
fn a_pod_with_many_sockets_does_not_push_out_those_of_others() -> Result<()> {
    const SOCKETS: usize = 25_000;
    let scenario = start()?;
    let (quiet, busy) = (scenario.cluster.pod("pod-1b")?, scenario.cluster.pod("pod-1a")?);
    // Each has a different endpoint, so that replies show which Service they are of.
    scenario.apply(WEB, &[scenario.cluster.pod("pod-2a")?])?;
    scenario.apply(EMPTY, &[scenario.cluster.pod("pod-2b")?])?;
    for (service, expected) in [(WEB, "pod-2a"), (EMPTY, "pod-2b")] {
        let call = busy.call(scenario.target(Entry::ClusterIp, service, false)?).protocol(Protocol::Udp);
        until(Duration::from_secs(10), expected, || {
            Ok(call.servers(9).is_ok_and(|all| all.iter().all(|server| server == expected)).then_some(()))
        })?;
    }
    for is_v4 in [true, false] {
        let target = |service| scenario.target(Entry::ClusterIp, service, is_v4);
        let all = [WEB, EMPTY, HOST_NETWORK, HAIRPIN].map(target);
        let all = all.into_iter().collect::<Result<Vec<SocketAddr>>>()?;
        let waiting = [quiet.park(&all[..1])?, quiet.park(&all)?];
        busy.open_sockets(&all, SOCKETS)?;
        for (socket, expected) in waiting.into_iter().zip([&all[..1], &all[..]]) {
            let replies = socket.receive()?;
            let mut seen: Vec<_> = replies.iter().filter_map(|reply| reply.peer).collect();
            let mut expected = expected.to_vec();
            seen.sort();
            expected.sort();
            ensure!(seen == expected, "{replies:?}");
        }
    }
    Ok(())
}

/// More than there are cells, so that some have storage: each shows the address that it requested, as long as it lives, and
/// leaves no record when it is closed.
#[test]
fn connected_sockets_show_the_service_however_many_there_are() -> Result<()> {
    let scenario = start()?;
    let busy = scenario.cluster.pod("pod-1a")?;
    let quiet = scenario.cluster.pod("pod-1b")?;
    // Each socket takes a port.
    busy.netns.sysctl(&[("ipv4/ip_local_port_range", "1024 65535")])?;
    let pins = Pins::new(&scenario.cluster.node(0)?.bpffs);
    let count = CELLS as usize + CELLS as usize / 8;
    for is_v4 in [true, false] {
        let all =
            [WEB, HOST_NETWORK, HAIRPIN].map(|service| scenario.target(Entry::ClusterIp, service, is_v4));
        let all = all.into_iter().collect::<Result<Vec<_>>>()?;
        let taken = || {
            if is_v4 { peer_cells::in_use::<V4>(&pins) } else { peer_cells::in_use::<V6>(&pins) }
        };
        let others = taken()?;
        let before = quiet.connect_sockets(&all, 100)?;
        let crowd = busy.connect_sockets(&all, count)?;
        let after = quiet.connect_sockets(&all, 100)?;
        // A socket that found its cell taken leaves another one free.
        let crowded = taken()?;
        ensure!(crowded > CELLS as usize / 2 && crowded <= CELLS as usize, "{crowded} cells are taken");
        for sockets in [crowd, before, after] {
            sockets.end()?;
        }
        let left = taken()?;
        ensure!(left <= others, "{left} cells are taken, {others} before");
    }
    Ok(())
}

/// An IPv6 socket that connects to addresses of both families has a cell of each. `IPV6_ADDRFORM` makes it a socket of IPv4.
#[test]
fn a_socket_that_changes_its_family_releases_the_cells_of_both() -> Result<()> {
    const SOCKETS: usize = 200;
    let scenario = start()?;
    let pins = Pins::new(&scenario.cluster.node(0)?.bpffs);
    let in_use =
        || Ok::<_, anyhow::Error>([peer_cells::in_use::<V4>(&pins)?, peer_cells::in_use::<V6>(&pins)?]);
    let [v4, v6] = [true, false].map(|is_v4| scenario.target(Entry::ClusterIp, WEB, is_v4));
    let before = in_use()?;
    let sockets = scenario.cluster.pod("pod-1a")?.convert_sockets(v6?, v4?, SOCKETS)?;
    let meanwhile = in_use()?;
    ensure!(meanwhile.iter().all(|count| *count >= SOCKETS / 2), "{meanwhile:?} cells are in use");
    sockets.end()?;
    let after = in_use()?;
    ensure!(after[0] <= before[0] && after[1] <= before[1], "{after:?} cells are in use, {before:?} before");
    Ok(())
}

/// An earlier release's programs, which know no cells, write to storage alone: then a socket has an old record in its cell.
#[test]
fn the_record_of_an_earlier_release_counts() -> Result<()> {
    const SOCKETS: usize = 50;
    let scenario = start()?;
    let pins = Pins::new(&scenario.cluster.node(0)?.bpffs);
    let target = scenario.target(Entry::ClusterIp, WEB, true)?;
    let sockets = scenario.cluster.pod("pod-1a")?.connect_sockets(&[target], SOCKETS)?;
    let (mut cells, mut storage) = (V4::peer_cells(&pins)?, V4::connected(&pins)?);
    let mut moved = Vec::new();
    for_each_socket(|socket| {
        let Ok(cookie) = socket_cookie(socket.as_fd()) else { return };
        let index = PeerCell::<V4>::index(cookie);
        let Ok(cell) = cells.element(index) else { return };
        if cell.owner() == Some(cookie) {
            let old = ConnectedPeer { backend_port: !cell.peer().backend_port, ..*cell.peer() };
            let result = storage.insert(socket, *cell.peer());
            moved.push(result.and_then(|()| cells.set(index, PeerCell::new(cookie, old))));
        }
    });
    let moved = moved.into_iter().collect::<io::Result<Vec<_>>>()?.len();
    ensure!(moved >= SOCKETS / 2, "{moved} sockets have cells");
    // Each shows its address as its peer.
    sockets.end()
}

/// Two Services, each with a different endpoint.
struct Two {
    scenario: Scenario,
    first: Host,
    second: Host,
}

fn ips(number: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 1, number).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 1, u16::from(number)).into(),
    ]
}

/// The address that moves.
const MOVING: u8 = 1;
const FIRST_NODE_PORT: u16 = 30_171;

impl Two {
    fn start() -> Result<Self> {
        let scenario = start()?;
        let (first, second) =
            (scenario.cluster.pod("pod-2a")?.clone(), scenario.cluster.pod("pod-2b")?.clone());
        let two = Self { scenario, first, second };
        two.apply(MOVING, 2)?;
        let call = two.client()?.call(two.moving(true)).protocol(Protocol::Udp).timeout(SHORT);
        until(Duration::from_secs(10), "the first Service", || {
            Ok(call.servers(1).is_ok_and(|servers| servers == [two.first.name.clone()]).then_some(()))
        })?;
        Ok(two)
    }

    /// Gives the Services their addresses.
    fn apply(&self, first: u8, second: u8) -> Result<()> {
        for (name, number, node_port, host) in
            [("first", first, Some(FIRST_NODE_PORT), &self.first), ("second", second, None, &self.second)]
        {
            let service = Service::new(name, &ips(number)).tcp_and_udp(SERVICE_PORT, TARGET_PORT, node_port);
            self.scenario.cluster.manifests.apply(&service, &[Endpoint::from(host)])?;
        }
        Ok(())
    }

    fn client(&self) -> Result<&Host> {
        self.scenario.cluster.pod("pod-1a")
    }

    fn moving(&self, is_v4: bool) -> SocketAddr {
        SocketAddr::new(ips(MOVING)[usize::from(!is_v4)], SERVICE_PORT)
    }
}

/// Longer than any reply takes: while no Service has the address, datagrams to it are lost.
const SHORT: Duration = Duration::from_millis(200);

fn served_by(load: &Load, host: &Host, within: Duration) -> Result<()> {
    until(within, &format!("answers from {}", host.name), || {
        let report = load.report()?;
        Ok(report.last_server.is_some_and(|server| host.owns(server.ip())).then_some(()))
    })
    .with_context(|| format!("{:?}", load.report()))
}

/// The Service that lost the address still serves, and so does its endpoint, with sockets that reached it by other ways.
#[test]
fn sockets_follow_an_address_to_another_service() -> Result<()> {
    let two = Two::start()?;
    let client = two.client()?;
    let node = &two.scenario.cluster.node(0)?.host;
    let load = |to, protocol| {
        client.call(to).protocol(protocol).keep_alive().every(Duration::from_millis(20)).timeout(SHORT).load()
    };
    let mut moving = Vec::new();
    let mut staying = Vec::new();
    for is_v4 in [true, false] {
        for protocol in [Protocol::Udp, Protocol::ConnectedUdp] {
            moving.push(load(two.moving(is_v4), protocol)?);
            let node_port = SocketAddr::new(node.address_like(two.moving(is_v4).ip()), FIRST_NODE_PORT);
            let endpoint = SocketAddr::new(two.first.address_like(two.moving(is_v4).ip()), TARGET_PORT);
            staying.push(load(node_port, protocol)?);
            staying.push(load(endpoint, protocol)?);
        }
        staying.push(load(two.moving(is_v4), Protocol::Tcp)?);
    }
    moving.iter().chain(&staying).try_for_each(|load| served_by(load, &two.first, SOON))?;
    two.apply(3, MOVING)?;
    moving.iter().try_for_each(|load| served_by(load, &two.second, SOON))?;
    for load in moving {
        let report = load.stop()?;
        // No Service had it for a moment.
        ensure!(report.failed < 20, "{report:?}");
    }
    for load in staying {
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok > 0, "{report:?}");
        ensure!(report.last_server.is_some_and(|server| two.first.owns(server.ip())), "{report:?}");
    }
    Ok(())
}

/// The address moved while no agent ran.
#[test]
fn sockets_follow_after_a_restart() -> Result<()> {
    let mut two = Two::start()?;
    let load = |two: &Two, protocol| {
        let call = two.client()?.call(two.moving(true)).protocol(protocol);
        call.keep_alive().every(Duration::from_millis(20)).timeout(SHORT).load()
    };
    let loads = [load(&two, Protocol::Udp)?, load(&two, Protocol::ConnectedUdp)?];
    loads.iter().try_for_each(|load| served_by(load, &two.first, SOON))?;
    two.scenario.agents.iter_mut().try_for_each(proxy_harness::cluster::Agent::kill)?;
    two.apply(3, MOVING)?;
    two.scenario.agents.iter_mut().try_for_each(proxy_harness::cluster::Agent::start)?;
    loads.iter().try_for_each(|load| served_by(load, &two.second, Duration::from_secs(10)))
}

/// A process that connects, and then names the same address in each datagram, gets replies of one endpoint only.
#[test]
fn a_connected_socket_that_names_its_peer_gets_replies() -> Result<()> {
    let scenario = start()?;
    let client = scenario.cluster.pod("pod-1a")?;
    for is_v4 in [true, false] {
        let target = scenario.target(Entry::ClusterIp, WEB, is_v4)?;
        for _ in 0..10 {
            let replies = client.park_connected(&[target])?.receive()?;
            ensure!(replies.iter().all(|reply| reply.peer == Some(target)), "{replies:?}");
        }
    }
    Ok(())
}
