//! Source ports towards one endpoint that many clients share, with far fewer ports than connections: a port that one client leaves,
//! another one uses. Needs root.
//!
//! Set-up: two nodes, an agent on the first with a small `--snat-ports`; eight client addresses with the same ports use
//! a nodePort of node-1, whose endpoint is on node-2.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use proxy_harness::{
    cluster::Cluster,
    traffic::{Entry, SINGLE, Scenario},
};
use proxy_load::{Attempts, Tally, Transport};

const TIME: Duration = Duration::from_secs(6);
const PARALLEL: usize = 32;
/// A SYN that the endpoint takes for an old one is sent again after a second (docs/limits.md, Ports).
const PATIENCE: Duration = Duration::from_secs(5);
/// In microseconds.
const SENT_AGAIN: u32 = 900_000;
/// Further addresses of the client's host: each has different timestamps.
const FURTHER_CLIENTS: std::ops::Range<u8> = 100..107;

/// Clients of a nodePort of node-1, whose only endpoint is on node-2. All have the same ports, so that one source port is the first choice of
/// many.
fn load(transport: Transport, client_ports: &str, ports: &str) -> Result<(Tally, String)> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "both")?;
    let cluster = &scenario.cluster;
    scenario.apply(SINGLE, &[cluster.pod("pod-2a")?])?;
    let client = &cluster.client;
    let own = client.v4.octets();
    let further: Vec<_> = FURTHER_CLIENTS.map(|last| Ipv4Addr::new(own[0], own[1], own[2], last)).collect();
    client
        .netns
        .ip(&further.iter().map(|address| format!("addr add {address}/24 dev eth0")).collect::<Vec<_>>())?;
    client.netns.sysctl(&[("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", client_ports)])?;
    let agent = cluster.start_agent(0, &["--pod-datapath", "both", "--snat-ports", ports])?;
    let SocketAddr::V4(to) = scenario.target(Entry::NodePort(0), SINGLE, true)? else { bail!("not IPv4") };
    let sources = [client.v4].into_iter().chain(further).collect();
    let attempts = Attempts { sources, patience: PATIENCE, ..Attempts::new(transport, to) };
    let tally = client.netns.run(|| Ok(attempts.closed_loop(PARALLEL, TIME)?))?;
    println!("{transport:?}: {:.0} a second, {tally}", tally.rate());
    Ok((tally, agent.debug(&["counters"])?))
}

/// None of the attempts fails, of which there are more than source ports. Of datagrams one in a thousand may be lost: 1 of 67,547 was, beside a
/// compiler, though its reply was translated.
fn none_fails(transport: Transport, client_ports: &str, ports: &str, least: u64) -> Result<()> {
    let (tally, counters) = load(transport, client_ports, ports)?;
    // One of some 60,000 was seen.
    let late = tally.connects.iter().filter(|&&time| time > SENT_AGAIN).count() as u64;
    ensure!(late <= tally.succeeded / 5_000, "{late} took a second or more: {tally}\n{counters}");
    let most = if matches!(transport, Transport::Udp) { tally.succeeded / 1000 } else { 0 };
    ensure!(tally.succeeded > least && tally.failures.total() <= most, "{tally}\n{counters}");
    Ok(())
}

/// Clients use these ports again and again.
const FEW: &str = "40000 40999";

/// Once 306 of 12,201 connections were reset: a port that was taken over ended a connection that its former owner had opened since.
#[test]
fn connections_that_the_server_closes() -> Result<()> {
    none_fails(Transport::TcpServerCloses, FEW, "20000-20999", 2_000)
}

#[test]
fn connections_that_the_client_closes() -> Result<()> {
    none_fails(Transport::TcpClientCloses, FEW, "20000-20399", 2_000)
}

/// Flows of one request and its reply give their ports to each other. Once there was one for each port, and then nothing for 10 seconds.
#[test]
fn datagrams() -> Result<()> {
    none_fails(Transport::Udp, "32768 60999", "20000-23999", 8_000)
}
