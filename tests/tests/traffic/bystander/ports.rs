//! Source ports that kernel NAT uses towards an endpoint of a Service.
//!
//! Set-up: two nodes with masquerade, an agent on the first whose `--snat-ports` are few; a pod talks to an endpoint of
//! node-2 by such a port.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use proxy_harness::{
    cluster::{Cluster, Masquerade, Protocol},
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

fn connected(from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    use std::os::fd::AsRawFd as _;
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("{from} -> {to}"))?;
    Ok(TcpStream::from(socket))
}

/// A pod talks to an endpoint's own address, masqueraded with a port of `--snat-ports`. Clients of the endpoint's Service get other
/// ports, also those whose own is mapped to that one, and the pod's conversation goes on.
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
    let own = SocketAddr::from((pod.v4, TAKEN));
    let (stream, datagrams) = pod.netns.run(|| {
        let datagrams = UdpSocket::bind(own)?;
        datagrams.connect(direct)?;
        datagrams.set_read_timeout(Some(PATIENCE))?;
        Ok((connected(own, direct)?, datagrams))
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    let node = cluster.node(0)?.host.v4;
    let mut talk = |number: usize| -> Result<()> {
        let text = format!("request {number}\n");
        let seen = format!("\"client\":\"{node}:{TAKEN}\"");
        stream.get_mut().write_all(text.as_bytes())?;
        let mut line = String::new();
        stream.read_line(&mut line).context("TCP")?;
        ensure!(line.ends_with(&text) && line.contains(&seen), "{line:?}");
        datagrams.send(text.as_bytes())?;
        let mut buffer = [0; 512];
        let length = datagrams.recv(&mut buffer).context("UDP")?;
        let reply = String::from_utf8_lossy(&buffer[..length]).into_owned();
        ensure!(reply.ends_with(&text) && reply.contains(&seen), "{reply:?}");
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
