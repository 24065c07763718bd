//! Packets that look like a Service's and are not, or not any more. Needs root.
//!
//! Set-up: two nodes, an agent on the first, mostly with `--pod-datapath both`; segments are written to a packet socket
//! at the client or a pod, and a tap shows what leaves the node.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_bystander::{
    ACK, BALANCER, BALANCER_PORT, FIN, RST, SYN, Segment, Tap, packets_to_balancer, route_balancer,
};
use proxy_harness::{
    cluster::{Agent, Cluster, Endpoint, Protocol, Service, until},
    traffic::{Entry, SINGLE, Scenario, TARGET_PORT, WEB, cluster_ip, node_port},
};

const SOON: Duration = Duration::from_secs(5);

fn flows(agent: &Agent) -> Result<Vec<serde_json::Value>> {
    Ok(serde_json::from_str(&agent.debug(&["flows", "-o", "json"])?)?)
}

/// Segments of no flow to a frontend at the node's address: the node's stack answers them as without an agent, and nothing is
/// remembered of them.
#[test]
fn segments_of_no_flow_open_none() -> Result<()> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "both")?;
    let cluster = &scenario.cluster;
    let node = cluster.node(0)?.host.v4;
    let mut agent = None;
    // First without an agent, then with.
    for round in 0..2_u16 {
        if round == 1 {
            agent = Some(cluster.start_agent(0, &["--pod-datapath", "both"])?);
        }
        let tap = Tap::open(&cluster.client.netns)?;
        let cases = [(ACK, true), (FIN | ACK, true), (SYN | ACK, true), (RST, false), (RST | ACK, false)];
        for (number, (flags, is_reset)) in cases.into_iter().enumerate() {
            for service in [WEB, SINGLE] {
                let port = 50_000 + round * 100 + number as u16 * 10 + u16::from(service);
                let from = SocketAddrV4::new(cluster.client.v4, port);
                let to = SocketAddrV4::new(node, node_port(service));
                let segment = Segment { from, to, seq: 7, ack: 77, flags };
                segment.send(&cluster.client.netns)?;
                // A SYN to a port that nothing listens at marks the end: its answer comes after any other.
                let end = SocketAddrV4::new(node, 9);
                Segment { to: end, flags: SYN, ..segment }.send(&cluster.client.netns)?;
                let what = format!("round {round}: the answer to flags {flags:#x} at {to}");
                let is_answer = |seen: &Segment| seen.to == from && seen.from == to;
                if is_reset {
                    let answer = tap.wait(SOON, &what, is_answer)?;
                    // The sequence number is the one that the segment acknowledges: a stack's answer to just this segment.
                    ensure!(answer.flags & RST != 0 && answer.seq == 77, "{what}: {answer:?}");
                } else {
                    let all = tap.all_until(SOON, "the mark", |seen| seen.to == from && seen.from == end)?;
                    ensure!(!all.iter().any(is_answer), "{what}: {all:?}");
                }
            }
        }
    }
    let left = flows(&agent.context("no agent")?)?;
    ensure!(left.is_empty(), "{} flows: {left:#?}", left.len());
    Ok(())
}

/// Load balancer addresses are routed to the node, and a default route leads back: packets that no Service takes must not go round.
#[test]
fn a_load_balancer_address_makes_no_loop() -> Result<()> {
    const NOT_SERVED: u16 = 9999;
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2).rp_filter(2), "both")?;
    let cluster = &scenario.cluster;
    route_balancer(cluster, cluster.pod("pod-1b")?)?;
    let send = || {
        cluster.client.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_ttl(255)?;
            for _ in 0..10 {
                socket.send_to(b"anyone?", (BALANCER, NOT_SERVED))?;
            }
            Ok(())
        })
    };
    // They are in flight for a moment: as long as their number grows.
    let settled = || -> Result<u64> {
        let (mut last, mut since) = (0, Instant::now());
        until(SOON, "the loop to end", || {
            let now = packets_to_balancer(cluster)?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
            Ok((since.elapsed() > Duration::from_millis(300)).then_some(now))
        })
    };
    send()?;
    let without = settled()?;
    ensure!(without > 1000, "only {without} packets: the network has no loop that could be prevented");
    let agent = cluster.start_agent(0, &["--pod-datapath", "both"])?;
    let balancer = SocketAddr::from((BALANCER, BALANCER_PORT));
    for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
        let reply = cluster.client.call(balancer).protocol(protocol).once()?;
        ensure!(reply.error.is_none(), "the Service itself, {protocol:?}: {reply:?}");
    }
    let before = settled()?;
    send()?;
    let with = settled()? - before;
    ensure!(with < 40, "{with} packets for 10 datagrams");
    // The same for a connection attempt.
    let before = settled()?;
    let from = SocketAddrV4::new(cluster.client.v4, 50_001);
    let syn = Segment { from, to: SocketAddrV4::new(BALANCER, NOT_SERVED), seq: 1, ack: 0, flags: SYN };
    syn.send(&cluster.client.netns)?;
    let with = settled()? - before;
    ensure!(with < 10, "{with} packets for one SYN");
    // An unknown connection is reset, and leaves nothing behind.
    let known = flows(&agent)?.len();
    let tap = Tap::open(&cluster.client.netns)?;
    let to = SocketAddrV4::new(BALANCER, BALANCER_PORT);
    let lost = Segment { from, to, seq: 7, ack: 77, flags: ACK };
    let before = settled()?;
    lost.send(&cluster.client.netns)?;
    let answer = tap.wait(SOON, "a reset", |seen| seen.from == to && seen.to == from)?;
    ensure!(answer.flags & RST != 0 && answer.seq == 77, "{answer:?}");
    let with = settled()? - before;
    ensure!(with < 10, "{with} packets for one ACK");
    ensure!(flows(&agent)?.len() == known, "{:#?}", flows(&agent)?);
    Ok(())
}

/// A load balancer address that the node itself has (on `lo`, as announcers of addresses like it): servers of the node at ports that no
/// Service has are reached.
#[test]
fn a_load_balancer_address_of_the_node_is_reached() -> Result<()> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "both")?;
    let cluster = &scenario.cluster;
    route_balancer(cluster, cluster.pod("pod-2a")?)?;
    let node = &cluster.node(0)?.host;
    node.netns.ip(&[format!("addr add {BALANCER}/32 dev lo")])?;
    let _server = node.serve_as("balancer", &[BALANCER.into()], 9999)?;
    let _agent = cluster.start_agent(0, &["--pod-datapath", "both"])?;
    for port in [9999, BALANCER_PORT] {
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            let reply = cluster.client.call((BALANCER, port).into()).protocol(protocol).once()?;
            ensure!(reply.error.is_none(), "port {port}, {protocol:?}: {reply:?}");
        }
    }
    Ok(())
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Client,
    Server,
    Reset,
}

/// Opens a connection, has some requests answered, and ends it.
fn converse(from: SocketAddr, to: SocketAddr, end: End) -> Result<()> {
    let stream = connect_from(from, to)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut stream = BufReader::new(stream);
    for number in 0..3 {
        let last = number == 2 && matches!(end, End::Server);
        let text = format!("{}request {number}\n", if last { "close " } else { "" });
        stream.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line).with_context(|| format!("request {number}"))?;
        ensure!(line.ends_with(&text), "request {number}: {line:?}");
    }
    match end {
        End::Client => {}
        End::Server => ensure!(stream.read(&mut [0])? == 0, "no FIN"),
        // Without lingering, closing a socket sends a reset.
        End::Reset => nix::sys::socket::setsockopt(
            stream.get_ref(),
            nix::sys::socket::sockopt::Linger,
            &libc::linger { l_onoff: 1, l_linger: 0 },
        )?,
    }
    Ok(())
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    use nix::sys::time::{TimeVal, TimeValLike};
    use std::os::fd::AsRawFd;
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(5))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("{from} -> {to}"))?;
    Ok(TcpStream::from(socket))
}

/// A connection through a Service from some port has ended. The next from this port goes to the endpoint directly: it works, in
/// both directions, and later goes through the Service again.
#[test]
fn a_port_is_used_for_a_service_and_then_for_its_endpoint() -> Result<()> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "tc")?;
    let cluster = &scenario.cluster;
    // Clients outside reach pods directly.
    for (node, v4, v6) in
        [(0, "10.244.1.0/24", "fd00:10:244:1::/64"), (1, "10.244.2.0/24", "fd00:10:244:2::/64")]
    {
        let host = &cluster.node(node)?.host;
        cluster
            .fabric
            .ip(&[format!("route add {v4} via {}", host.v4), format!("route add {v6} via {}", host.v6)])?;
    }
    // It works without an agent.
    for (client, endpoint) in
        [(&cluster.client, "pod-1b"), (cluster.pod("pod-1a")?, "pod-1b"), (cluster.pod("pod-1a")?, "pod-2a")]
    {
        for address in [cluster.pod(endpoint)?.v4.into(), cluster.pod(endpoint)?.v6.into()] {
            let (from, to) = (
                SocketAddr::new(client.address_like(address), 39_999),
                SocketAddr::new(address, TARGET_PORT),
            );
            client.netns.run(|| converse(from, to, End::Client))?;
        }
    }
    let _agent = cluster.start_agent(0, &["--pod-datapath", "tc"])?;
    let mut failures = proxy_harness::cluster::Failures::default();
    let mut port = 40_000;
    for ipv4 in [true, false] {
        // From outside to a pod of node-1; from a pod of node-1 to both nodes' pods.
        let ways = [
            (&cluster.client, Entry::NodePort(0), "pod-1b"),
            (cluster.pod("pod-1a")?, Entry::ClusterIp, "pod-1b"),
            (cluster.pod("pod-1a")?, Entry::ClusterIp, "pod-2a"),
        ];
        for (client, entry, endpoint) in ways {
            let endpoint = cluster.pod(endpoint)?;
            scenario.apply(SINGLE, &[endpoint])?;
            let service = scenario.target(entry, SINGLE, ipv4)?;
            let name = endpoint.name.clone();
            until(SOON, "the endpoint", || {
                Ok((client.call(service).servers(1)? == [name.clone()]).then_some(()))
            })?;
            let direct = SocketAddr::new(endpoint.address_like(service.ip()), TARGET_PORT);
            for end in [End::Client, End::Server, End::Reset] {
                port += 1;
                let from = SocketAddr::new(client.address_like(service.ip()), port);
                let what = format!("{} -> {entry} -> {}, ended by {end:?}", client.name, endpoint.name);
                failures.case(what, || {
                    client.netns.run(|| {
                        converse(from, service, end).context("through the Service")?;
                        converse(from, direct, end).context("then directly")
                    })
                });
            }
        }
    }
    failures.verdict()
}

/// The endpoint did not get the client's ACK and sends its SYN-ACK again, when the client has sent data's end already: this one, too,
/// must leave with the Service's address. A raw socket in the endpoint's namespace plays the endpoint's stack.
#[test]
fn a_late_syn_ack_is_translated() -> Result<()> {
    const HELD_PORT: u16 = 8099;
    const NODE_PORT: u16 = 30_190;
    // No router drops it for its source, whatever that is.
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2).rp_filter(0), "both")?;
    let cluster = &scenario.cluster;
    let endpoint = cluster.pod("pod-1b")?;
    let held = Service::new("held", &[cluster_ip(90, true)]).tcp_and_udp(80, HELD_PORT, Some(NODE_PORT));
    cluster.manifests.apply(&held, &[Endpoint::from(endpoint)])?;
    let listener = endpoint.netns.run(|| Ok(TcpListener::bind((endpoint.v4, HELD_PORT))?))?;
    let _agent = cluster.start_agent(0, &["--pod-datapath", "both"])?;
    let tap = Tap::open(&cluster.client.netns)?;
    let service = SocketAddrV4::new(cluster.node(0)?.host.v4, NODE_PORT);
    let client = SocketAddrV4::new(cluster.client.v4, 40_123);
    let stream = cluster.client.netns.run(|| connect_from(client.into(), service.into()))?;
    let (mut accepted, _) = listener.accept()?;
    let first = tap.wait(SOON, "the SYN-ACK", |seen| seen.flags == SYN | ACK && seen.to == client)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    accepted.set_read_timeout(Some(SOON))?;
    ensure!(accepted.read(&mut [0])? == 0, "data instead of a FIN");
    let own = SocketAddrV4::new(endpoint.v4, HELD_PORT);
    Segment { from: own, ..first }.send(&endpoint.netns)?;
    let again = tap.wait(SOON, "the late SYN-ACK", |seen| seen.flags == SYN | ACK && seen.to == client)?;
    ensure!(again.from == service, "it comes from {}, not {service}", again.from);
    // And the connection continues.
    accepted.write_all(b"late data\n")?;
    stream.set_read_timeout(Some(SOON))?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    ensure!(line == "late data\n", "{line:?}");
    Ok(())
}

/// The node lost the flow (an address moved here from another node, the map was full, a reboot): the client's next packet is reset, so
/// that it connects again at once. It must not hang.
#[test]
fn connections_that_the_node_lost_are_reset() -> Result<()> {
    let mut scenario = Scenario::without_agents(Cluster::builder().nodes(2).rp_filter(2), "both")?;
    route_balancer(&scenario.cluster, scenario.cluster.pod("pod-2a")?)?;
    scenario.apply(SINGLE, &[scenario.cluster.pod("pod-2b")?])?;
    let agent = scenario.cluster.start_agent(0, &["--pod-datapath", "both"])?;
    scenario.agents.push(agent);
    let cluster = &scenario.cluster;
    let targets = [(BALANCER, BALANCER_PORT).into(), scenario.target(Entry::NodePort(0), SINGLE, true)?];
    let mut streams = Vec::new();
    for to in targets {
        let stream = cluster.client.netns.run(|| Ok(TcpStream::connect_timeout(&to, SOON)?))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut stream = BufReader::new(stream);
        ask(&mut stream).with_context(|| format!("{to}: while the flow is known"))?;
        streams.push((to, stream));
    }
    let agent = &mut scenario.agents[0];
    agent.terminate()?;
    agent.cleanup()?;
    agent.start()?;
    for (to, mut stream) in streams {
        match ask(&mut stream) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => bail!("{to}: neither reset nor answered: {error}"),
        }
    }
    Ok(())
}

/// A host that knows a connection's addresses and ports, but not its sequence numbers, sends a FIN and then a SYN in the client's
/// name: the endpoint takes neither, and the connection must not move to another endpoint.
#[test]
fn a_forged_end_moves_no_connection() -> Result<()> {
    const CONNECTIONS: u16 = 8;
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2).rp_filter(0), "both")?;
    let cluster = &scenario.cluster;
    let _agent = cluster.start_agent(0, &["--pod-datapath", "both"])?;
    let tap = Tap::open(&cluster.client.netns)?;
    let service = SocketAddrV4::new(cluster.node(0)?.host.v4, node_port(WEB));
    for port in 41_000..41_000 + CONNECTIONS {
        let client = SocketAddrV4::new(cluster.client.v4, port);
        let stream = cluster.client.netns.run(|| connect_from(client.into(), service.into()))?;
        stream.set_read_timeout(Some(SOON))?;
        let mut stream = BufReader::new(stream);
        let first = tap.wait(SOON, "the SYN-ACK", |seen| seen.flags == SYN | ACK && seen.to == client)?;
        ask(&mut stream).context("before")?;
        let seq = first.ack.wrapping_add(1 << 31);
        for flags in [FIN | ACK, SYN] {
            Segment { from: client, to: service, seq, ack: 77, flags }.send(&cluster.client.netns)?;
        }
        for _ in 0..2 {
            ask(&mut stream).with_context(|| format!("{client}: after the forged segments"))?;
        }
    }
    Ok(())
}

/// A request and its answer.
fn ask(stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    stream.get_mut().write_all(b"still there?\n")?;
    let mut line = String::new();
    match stream.read_line(&mut line)? {
        0 => Err(std::io::ErrorKind::ConnectionReset.into()),
        _ => Ok(()),
    }
}
