//! Datagrams whose fragments come in any order, through every path that packets take. Needs root.
//!
//! Set-up: two nodes with two routed pods each, pods served by programs at their interfaces; fragments are written to
//! raw sockets in pods, on a node and at the client.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use proxy_harness::{
    cluster::{Cluster, Host},
    traffic::{Entry, HOST_NETWORK, Scenario, WEB},
};
use proxy_packets::{Frame, Transport, fragments};

const ETHERNET: usize = 14;
const PAYLOAD: usize = 3_000;
/// Bytes of each fragment: four of them.
const PIECE: usize = 760;

/// A socket for whole packets, headers included.
fn raw(is_v4: bool) -> Result<OwnedFd> {
    let family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?)
}

/// Sends a datagram in fragments, in this order, and waits for the answer that has it in it.
fn ask(from: &Host, own: IpAddr, to: SocketAddr, order: &[usize], identification: u16) -> Result<()> {
    from.netns.run(|| {
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut datagram = Frame::new(socket.local_addr()?, to, Transport::Udp);
        datagram.payload = (0..PAYLOAD).map(|i| b'a' + (i % 26) as u8).collect();
        let pieces = fragments(&datagram.build()?, identification, PIECE);
        ensure!(pieces.len() == order.len());
        let raw = raw(own.is_ipv4())?;
        // For raw sockets a port is a protocol.
        let target = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
        for &number in order {
            sendto(raw.as_raw_fd(), &pieces[number][ETHERNET..], &target, MsgFlags::empty())
                .with_context(|| format!("fragment {number}"))?;
        }
        let mut buffer = vec![0; 65_536];
        let (length, answerer) = socket.recv_from(&mut buffer).context("no answer")?;
        ensure!(answerer == to, "answered by {answerer}");
        ensure!(buffer[..length].ends_with(&datagram.payload), "another payload");
        Ok(())
    })
}

#[test]
fn fragments_in_any_order() -> Result<()> {
    let scenario = Scenario::start(Cluster::builder().nodes(2), "tc", &[])?;
    let cluster = &scenario.cluster;
    let orders: [&[usize]; 4] = [&[0, 1, 2, 3], &[0, 3, 2, 1], &[3, 2, 1, 0], &[2, 0, 3, 1]];
    let mut identification = 0x4000;
    let mut failures = Vec::new();
    for is_v4 in [true, false] {
        let own = |host: &Host| if is_v4 { IpAddr::V4(host.v4) } else { IpAddr::V6(host.v6) };
        for (from, entry, service) in [
            (&cluster.client, Entry::NodePort(0), WEB),
            // The backend is on the other node.
            (&cluster.client, Entry::NodePort(0), HOST_NETWORK),
            (cluster.pod("pod-1a")?, Entry::ClusterIp, WEB),
        ] {
            let to = scenario.target(entry, service, is_v4)?;
            for order in orders {
                // Several, so that each backend of the service is met.
                for _ in 0..4 {
                    identification += 1;
                    if let Err(error) = ask(from, own(from), to, order, identification) {
                        failures.push(format!("{} -> {entry} ({to}), {order:?}: {error:#}", from.name));
                    }
                }
            }
        }
    }
    let counters = scenario.agents[0].debug(&["counters"])?;
    ensure!(failures.is_empty(), "{}\n{counters}", failures.join("\n"));
    let released =
        counters.lines().find(|line| line.contains("fragment_released")).context("no such counter")?;
    ensure!(!released.split_whitespace().any(|word| word == "0"), "none was held: {released}");
    Ok(())
}
