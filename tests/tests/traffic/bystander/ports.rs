//! Source ports that others use towards an endpoint of a Service: kernel NAT, and the client's own pod.
//!
//! Set-up: two nodes. With masquerade, an agent on the first whose `--snat-ports` are few, and a pod that talks to an
//! endpoint of node-2 by such a port; without, a pod that talks to an endpoint directly and through the VIP.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use proxy_harness::{
    cluster::{Cluster, Host, Masquerade, Protocol},
    traffic::{Entry, SINGLE, Scenario, TARGET_PORT},
};

/// The ports that the agent may give; the pod uses the first.
const PORTS: &str = "20000-20063";
const TAKEN: u16 = 20_000;
/// Ports of clients, which are all mapped to the pod's: multiples of the range's size. Half as many as there are ports, so that another
/// one is found without luck.
const CLIENTS: [u16; 32] = {
    let mut ports = [40_000; 32];
    let mut i = 1;
    while i < ports.len() {
        ports[i] = ports[i - 1] + 64;
        i += 1;
    }
    ports
};
const PATIENCE: Duration = Duration::from_secs(3);

/// A socket of this kind that shares its address and port with others, connected.
fn connected(kind: SockType, from: SocketAddr, to: SocketAddr) -> Result<OwnedFd> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("{from} -> {to}"))?;
    Ok(socket)
}

/// Two conversations, by TCP and by UDP, from the same address and port to the same ones.
struct Conversation {
    stream: BufReader<TcpStream>,
    datagrams: UdpSocket,
}

impl Conversation {
    /// Opened by a process that is in the pod's network namespace, but not in its cgroup: no socket hooks serve it.
    fn open(pod: &Host, own: SocketAddr, to: SocketAddr) -> Result<Self> {
        let (stream, datagrams) = pod
            .netns
            .run(|| Ok((connected(SockType::Stream, own, to)?, connected(SockType::Datagram, own, to)?)))?;
        let (stream, datagrams) = (TcpStream::from(stream), UdpSocket::from(datagrams));
        stream.set_read_timeout(Some(PATIENCE))?;
        datagrams.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), datagrams })
    }

    /// A request and its reply by each; returns the replies, which name the client that the endpoint sees.
    fn talk(&mut self, number: usize) -> Result<[String; 2]> {
        let text = format!("request {number}\n");
        self.stream.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line).context("TCP")?;
        self.datagrams.send(text.as_bytes())?;
        let mut buffer = [0; 512];
        let length = self.datagrams.recv(&mut buffer).context("UDP")?;
        let replies = [line, String::from_utf8_lossy(&buffer[..length]).into_owned()];
        ensure!(replies.iter().all(|reply| reply.ends_with(&text)), "{replies:?}");
        Ok(replies)
    }
}

/// A pod talks to an endpoint's own address, masqueraded with a port of `--snat-ports`. Clients of the endpoint's Service get other
/// ports, also those whose own is mapped to that one, and the pod's conversation continues.
#[test]
fn ports_of_masqueraded_conversations_are_left_alone() -> Result<()> {
    let builder = Cluster::builder().nodes(2).masquerade(Masquerade::Plain);
    let scenario = Scenario::without_agents(builder, "both")?;
    let cluster = &scenario.cluster;
    let (pod, endpoint) = (cluster.pod("pod-1a")?, cluster.pod("pod-2a")?);
    scenario.apply(SINGLE, &[endpoint])?;
    // Pods of other nodes are outside to this rule.
    cluster.node(0)?.host.netns.nft(
        "table ip meddler {
            chain postrouting {
                type nat hook postrouting priority 90; policy accept;
                ip saddr 10.244.0.0/16 oifname \"eth0\" masquerade
            }
        }",
    )?;
    let agent = cluster.start_agent(0, &["--pod-datapath", "both", "--snat-ports", PORTS])?;
    let direct = SocketAddr::from((endpoint.v4, TARGET_PORT));
    let mut conversation = Conversation::open(pod, SocketAddr::from((pod.v4, TAKEN)), direct)?;
    let seen = format!("\"client\":\"{}:{TAKEN}\"", cluster.node(0)?.host.v4);
    let mut talk = |number: usize| -> Result<()> {
        let replies = conversation.talk(number)?;
        ensure!(replies.iter().all(|reply| reply.contains(&seen)), "{replies:?}");
        Ok(())
    };
    talk(0)?;
    let to = scenario.target(Entry::NodePort(0), SINGLE, true)?;
    for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
        for (number, port) in CLIENTS.into_iter().enumerate() {
            let from = SocketAddr::from((cluster.client.v4, port));
            let call = cluster.client.call(to).protocol(protocol).bind(from).timeout(PATIENCE);
            call.once().with_context(|| format!("{protocol:?} from {from}\n{}", agent.log()))?;
            talk(number)?;
        }
    }
    Ok(())
}

/// A pod's kernel keeps source ports apart by the destinations that it knows: it may use the port of a connection to an endpoint for one to
/// the VIP, which leads to the same endpoint. Both work, whether the first one goes to the endpoint's own address or is served by socket
/// hooks, on an endpoint of this node or another one.
#[test]
fn ports_of_the_pod_s_own_connections_are_left_alone() -> Result<()> {
    let scenario = Scenario::start(Cluster::builder().nodes(2), "both", &[])?;
    let cluster = &scenario.cluster;
    let pod = cluster.pod("pod-1a")?;
    for endpoint in ["pod-1b", "pod-2a"] {
        let endpoint = cluster.pod(endpoint)?;
        scenario.apply(SINGLE, &[endpoint])?;
        for ipv4 in [true, false] {
            let vip = scenario.target(Entry::ClusterIp, SINGLE, ipv4)?;
            let what = format!("{vip}, endpoint {}", endpoint.name);
            let direct = SocketAddr::new(endpoint.address_like(vip.ip()), TARGET_PORT);
            let own = |port| SocketAddr::new(pod.address_like(vip.ip()), port);

            let mut first = Conversation::open(pod, own(41_000), direct)?;
            first.talk(0).with_context(|| format!("{what}: direct, alone"))?;
            let mut second = Conversation::open(pod, own(41_000), vip).with_context(|| what.clone())?;
            for number in 1..10 {
                second.talk(number).with_context(|| format!("{what}: by packets, beside a direct one"))?;
                first.talk(number).with_context(|| format!("{what}: direct"))?;
            }

            let load = pod.call(vip).bind(own(41_001)).keep_alive().load()?;
            load.wait_for(10)?;
            let mut second = Conversation::open(pod, own(41_001), vip).with_context(|| what.clone())?;
            for number in 0..10 {
                second.talk(number).with_context(|| format!("{what}: by packets, beside one by sockets"))?;
            }
            load.wait_for(load.report()?.sent + 10)?;
            let report = load.stop()?;
            ensure!(report.errors.is_empty(), "{what}: by sockets: {report:?}");
        }
    }
    Ok(())
}
