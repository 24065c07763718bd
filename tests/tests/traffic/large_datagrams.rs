//! Datagrams that are longer than the way to a remote endpoint. Needs root.
//!
//! Set-up: two nodes joined by VXLAN, whose MTU is smaller than that of pods and uplinks; an endpoint on the other
//! node. Routed and bridged pods, with programs at tc and with generic XDP. One test has plain routes and a route with
//! an MTU.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_harness::{
    cluster::{Agent, Builder, Cluster, Failures, Overlay, PathMtu, PodNetwork, Protocol, until},
    traffic::{Entry, SINGLE, Scenario, single::conclude_with_conntrack},
};

/// Bytes of the narrow way.
const WAY: u32 = 1_400;

/// SINGLE has its endpoint on node-2, behind an overlay of 1,400 bytes.
fn scenario(builder: Builder, args: &[&str]) -> Result<Scenario> {
    let mut scenario = Scenario::without_agents(builder.overlay(Overlay::Vxlan).nodes(2), "socket")?;
    for node in &scenario.cluster.nodes {
        node.host.netns.ip(&[format!("link set vxlan.1 mtu {WAY}")])?;
    }
    scenario.apply(SINGLE, &[scenario.cluster.pod("pod-2a")?])?;
    scenario.agents = scenario.cluster.start_agents(args)?;
    Ok(scenario)
}

fn is_served(builder: Builder, args: &[&str]) -> Result<()> {
    let scenario = scenario(builder, args)?;
    let mut failures = Failures::default();
    for (ipv4, mode) in [(true, PathMtu::Dont), (true, PathMtu::Want), (false, PathMtu::Want)] {
        let to = scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
        // One that fits, one that is too long and comes whole, and ones that come in fragments, of which the last one fits or not.
        for size in [800, 1_440, 2_900, 3_000, 4_400, 20_000] {
            failures.case(format!("{to}, {mode:?}, {size} bytes"), || {
                let call = scenario.cluster.client.call(to).protocol(Protocol::Udp).size(size);
                for _ in 0..10 {
                    // With "don't fragment" and with IPv6 the sender gets an ICMP error first; others would never be answered.
                    let reply = call.clone().timeout(Duration::from_secs(1)).datagram(mode, 3)?;
                    ensure!(reply.answer.is_some(), "{reply:?}");
                }
                Ok(())
            });
        }
        failures.case(format!("{to}, TCP"), || {
            const BYTES: u64 = 5_000_000;
            let report = scenario.cluster.client.call(to).bulk(BYTES)?;
            ensure!(report.bytes == BYTES, "{report:?}");
            Ok(())
        });
    }
    conclude_with_conntrack(&scenario, failures)
}

#[test]
fn datagrams_that_may_be_cut() {
    is_served(Cluster::builder(), &["--pod-datapath", "tc"]).unwrap();
}

#[test]
fn datagrams_that_may_be_cut_with_xdp() {
    is_served(Cluster::builder().pods(PodNetwork::Bridged).offload(false), &["--xdp", "generic"]).unwrap();
}

/// The stack must take packets that come from the node's own address, whatever its checks, and forget no rule of others.
#[test]
fn without_strict_source_checks() {
    is_served(Cluster::builder().rp_filter(0), &[]).unwrap();
}

/// With "don't fragment" the sender gets an ICMP error, as before; the rule goes with the agent's clean-up.
#[test]
fn datagrams_that_may_not_be_cut() -> Result<()> {
    let mut scenario = scenario(Cluster::builder(), &[])?;
    let to = scenario.target(Entry::NodePort(0), SINGLE, true)?;
    let call = scenario.cluster.client.call(to).protocol(Protocol::Udp).size(1_440);
    let reply = call.timeout(Duration::from_secs(1)).datagram(PathMtu::Do, 3)?;
    ensure!(reply.answer.is_some(), "{reply:?}");
    let counters = scenario.agents[0].debug(&["counters"])?;
    let line = counters.lines().find(|line| line.contains("too_big")).context("no such counter")?;
    ensure!(!line.split_whitespace().any(|word| word == "0"), "{counters}");
    let netns = &scenario.cluster.node(0)?.host.netns;
    let tables = || netns.feed("nft", &["list", "tables"], "");
    ensure!(tables()?.contains("inet proxy-agent-fragments"), "{}", tables()?);
    scenario.agents[0].terminate()?;
    scenario.agents[0].cleanup()?;
    ensure!(!tables()?.contains("proxy-agent"), "{}", tables()?);
    Ok(())
}

/// How many ICMP errors were sent about datagrams that were too long.
fn icmp_errors(agent: &Agent) -> Result<u32> {
    let counters = agent.debug(&["counters"])?;
    let line = counters.lines().find(|line| line.contains("too_big")).context("no such counter")?;
    line.split_whitespace().find_map(|word| word.parse().ok()).context("no number")
}

/// `bpf_fib_lookup` reports the MTU of a route only if it is locked; the kernel's forwarding obeys others as well. A longer prefix
/// without an MTU decides for its addresses.
#[test]
fn a_route_with_an_mtu() -> Result<()> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "socket")?;
    let agent = scenario.cluster.start_agent(0, &[])?;
    let (node, other) = (&scenario.cluster.node(0)?.host, &scenario.cluster.node(1)?.host);
    let (near, far) = (scenario.cluster.pod("pod-2a")?, scenario.cluster.pod("pod-2b")?);
    let call = |to, size| {
        let call = scenario.cluster.client.call(to).protocol(Protocol::Udp);
        call.timeout(Duration::from_secs(1)).size(size)
    };
    for kind in ["mtu lock", "mtu"] {
        node.netns.ip(&[
            format!("route replace 10.244.2.0/24 via {} dev eth0 {kind} {WAY}", other.v4),
            format!("route replace fd00:10:244:2::/64 via {} dev eth0 {kind} {WAY}", other.v6),
            format!("route replace {}/32 via {} dev eth0", far.v4, other.v4),
            format!("route replace {}/128 via {} dev eth0", far.v6, other.v6),
        ])?;
        for (pod, is_refused) in [(near, true), (far, false)] {
            scenario.apply(SINGLE, &[pod])?;
            for ipv4 in [true, false] {
                let to = scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
                let what = format!("{kind}, {to}, {}", pod.name);
                until(Duration::from_secs(10), &what, || {
                    Ok(call(to, 100).once()?.answer.filter(|answer| answer.server == pod.name))
                })?;
                // A client caches the MTU of the ICMP error.
                let family = if ipv4 { "-4" } else { "-6" };
                let forget = ["route flush cache".to_owned()];
                // The agent learns of changed routes a moment later. The way without an MTU comes after the one with it.
                until(Duration::from_secs(10), &format!("{what}: an ICMP error: {is_refused}"), || {
                    scenario.cluster.client.netns.ip_with(&[family], &forget)?;
                    let before = icmp_errors(&agent)?;
                    let reply = call(to, 1_440).datagram(PathMtu::Do, 3)?;
                    ensure!(reply.answer.is_some(), "{what}: {reply:?}");
                    let sent = icmp_errors(&agent)? - before;
                    ensure!(is_refused || sent == 0, "{what}: {sent} ICMP errors");
                    Ok(((sent > 0) == is_refused).then_some(()))
                })?;
            }
        }
    }
    // Without "don't fragment" the stack fragments them.
    scenario.apply(SINGLE, &[near])?;
    let to = scenario.target(Entry::NodePort(0), SINGLE, true)?;
    let before = icmp_errors(&agent)?;
    for size in [1_440, 9_000] {
        let reply = call(to, size).datagram(PathMtu::Dont, 3)?;
        ensure!(reply.answer.is_some(), "{size} bytes: {reply:?}");
    }
    ensure!(icmp_errors(&agent)? == before, "{}", agent.debug(&["counters"])?);
    Ok(())
}
