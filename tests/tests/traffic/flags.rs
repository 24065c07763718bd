//! Flags of `run` that change what clients see. Needs root.
//!
//! Set-up: three nodes with two routed pods each; per test one flag and the way of serving pods that it concerns.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Host, Protocol, until},
    traffic::{EMPTY, Entry, SINGLE, Scenario, WEB},
};

const SOON: Duration = Duration::from_secs(10);

/// Linux ignores an ICMP message while it connects, for up to a second; a reset it obeys.
const AT_ONCE: u128 = 500;

fn start(pod_datapath: &'static str, args: &[&str]) -> Result<Scenario> {
    Scenario::start(Cluster::builder(), pod_datapath, args)
}

/// `--reject tcp-reset`: clients served by packets get the refusal at once.
#[test]
fn packets_are_rejected_with_resets() -> Result<()> {
    let scenario = start("tc", &["--reject", "tcp-reset"])?;
    let cluster = &scenario.cluster;
    for ipv4 in [true, false] {
        for (client, entry) in [
            (cluster.pod("pod-1a")?, Entry::ClusterIp),
            (cluster.pod("pod-3a")?, Entry::NodePort(0)),
            (&cluster.client, Entry::NodePort(0)),
            (&cluster.client, Entry::NodePort(2)),
        ] {
            let reply = client.call(scenario.target(entry, EMPTY, ipv4)?).once()?;
            ensure!(reply.error.as_deref() == Some("ECONNREFUSED"), "{} {entry}: {reply:?}", client.name);
            ensure!(u128::from(reply.elapsed_ms) < AT_ONCE, "{} {entry}: {reply:?}", client.name);
            let reply = client.call(scenario.target(entry, EMPTY, ipv4)?).protocol(Protocol::ConnectedUdp);
            let reply = reply.once()?;
            ensure!(
                reply.error.as_deref() == Some("ECONNREFUSED"),
                "{} {entry}, UDP: {reply:?}",
                client.name
            );
        }
    }
    Ok(())
}

/// `--reset-removed-tcp`: connections end when their endpoint goes; without it they stay (the conformance table has that).
#[test]
fn connections_to_removed_endpoints_are_reset() -> Result<()> {
    for pod_datapath in ["socket", "tc"] {
        let scenario = start(pod_datapath, &["--reset-removed-tcp"])?;
        let cluster = &scenario.cluster;
        let outside = scenario.target(Entry::NodePort(0), SINGLE, true)?;
        let inside = scenario.target(Entry::ClusterIp, SINGLE, true)?;
        let inside_v6 = scenario.target(Entry::ClusterIp, SINGLE, false)?;
        let clients: [(&Host, SocketAddr); 4] = [
            (cluster.pod("pod-3a")?, inside),
            (cluster.pod("pod-3a")?, inside_v6),
            (&cluster.node(2)?.host, inside),
            (&cluster.client, outside),
        ];
        let start = |(client, to): &(&Host, SocketAddr)| {
            client.call(*to).keep_alive().timeout(Duration::from_secs(3)).load()
        };
        let loads = clients.iter().map(start).collect::<Result<Vec<_>>>()?;
        for load in &loads {
            load.wait_for(3)?;
            ensure!(load.report()?.failed == 0);
        }
        scenario.apply(SINGLE, &[cluster.pod("pod-3b")?])?;
        for ((client, to), load) in clients.iter().zip(&loads) {
            let what = format!("{pod_datapath}: the end of the connection {} -> {to}", client.name);
            // It ends with an error, at once: a reset, or a socket that has no peer any more.
            let error = until(SOON, &what, || Ok(load.report()?.errors.into_iter().next()))?;
            ensure!(!error.contains("ETIMEDOUT"), "{what}: {error}");
            let expected = cluster.pod("pod-3b")?;
            until(SOON, &what, || {
                let server = load.report()?.last_server;
                Ok(server.is_some_and(|server| expected.owns(server.ip())).then_some(()))
            })?;
        }
    }
    Ok(())
}

/// `--localhost-nodeports false`, as kube-proxy's flag.
#[test]
fn localhost_may_be_left_to_the_node() -> Result<()> {
    let scenario = start("socket", &["--localhost-nodeports", "false"])?;
    let node = &scenario.cluster.node(0)?.host;
    for ipv4 in [true, false] {
        let reply = node.call(scenario.target(Entry::Localhost, WEB, ipv4)?).once()?;
        ensure!(reply.error.as_deref() == Some("ECONNREFUSED"), "{reply:?}");
        let reply = node.call(scenario.target(Entry::NodePort(0), WEB, ipv4)?).once()?;
        ensure!(reply.answer.is_some(), "{reply:?}");
    }
    Ok(())
}

/// `--service-cidr` for API servers without ServiceCIDRs: packets to unused addresses do not leave the node, pings are answered.
#[test]
fn service_ranges_may_be_named() -> Result<()> {
    let scenario = start("socket", &["--service-cidr", "10.96.0.0/16,fd00:10:96::/112,0.0.0.0/0"])?;
    let cluster = &scenario.cluster;
    let patience = Duration::from_millis(1500);
    for client in [cluster.pod("pod-1a")?, &cluster.node(0)?.host] {
        for ipv4 in [true, false] {
            let vip = scenario.target(Entry::ClusterIp, WEB, ipv4)?.ip();
            ensure!(client.ping(vip, patience)?, "{} -> {vip}", client.name);
        }
        let unallocated: SocketAddr = "10.96.99.99:80".parse()?;
        let reply = client.call(unallocated).timeout(Duration::from_millis(300)).once()?;
        ensure!(reply.error.as_deref() == Some("ETIMEDOUT"), "{reply:?}");
    }
    // An invalid range is reported once, not with every change.
    let warnings = || scenario.agents[0].log().lines().filter(|line| line.contains("is left out")).count();
    scenario.apply(SINGLE, &[])?;
    scenario.agents[0].wait_for_log("default/single:tcp-80 changed")?;
    ensure!(warnings() == 1, "{}", scenario.agents[0].log());
    let counters = scenario.agents[0].debug(&["counters"])?;
    for counter in ["echo_reply", "unallocated"] {
        let line = counters.lines().find(|line| line.starts_with(counter)).unwrap_or_default();
        ensure!(line.split_whitespace().nth(1).is_some_and(|count| count != "0"), "{counter}: {counters}");
    }
    Ok(())
}
