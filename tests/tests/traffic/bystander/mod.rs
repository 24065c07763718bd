//! Non-service traffic, on nodes as CNIs leave them: with the agent it fares as without. Needs root.
//!
//! Each test builds a cluster in one set-up, runs the battery of conversations without an agent, then again while the agent of node-1
//! runs, and compares. See `tests/bystander` for both.

mod flows;
mod migration;
mod ports;

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_bystander::{Battery, Fixture, Setup, all_ok, equal, steady};
use proxy_harness::{
    cluster::{Masquerade, Protocol},
    traffic::{Entry, SINGLE},
};

/// The battery without and with the agent. Whatever has a masquerade rule must get everything through without.
fn same_with_agent(setup: Setup) -> Result<()> {
    let fixture = Fixture::new(setup)?;
    let before = Battery::run(&fixture, 0)?;
    let failed: Vec<_> = before.iter().filter(|outcome| outcome.succeeded != outcome.tried).collect();
    // The policy blocks packets from node-1 to pods of node-2, replies included.
    ensure!(setup == Setup::BlockPolicy || failed.is_empty(), "without an agent: {failed:#?}");
    let mut agent = fixture.start_agent(&[])?;
    let with = Battery::run(&fixture, 1)?;
    equal(&before, &with)?;
    if setup == Setup::BlockPolicy {
        // Blocked requests take all of their time; another round would show nothing else.
        return Ok(());
    }
    agent.terminate()?;
    // The programs stay when the agent has ended.
    let after = Battery::run(&fixture, 2)?;
    equal(&before, &after)
}

#[test]
fn with_masquerade() {
    same_with_agent(Setup::Masquerade(Masquerade::Plain)).unwrap();
}

#[test]
fn with_masquerade_random() {
    same_with_agent(Setup::Masquerade(Masquerade::Random)).unwrap();
}

#[test]
fn with_masquerade_fully_random() {
    same_with_agent(Setup::Masquerade(Masquerade::FullyRandom)).unwrap();
}

#[test]
fn with_host_ports() {
    same_with_agent(Setup::HostPorts).unwrap();
}

#[test]
fn with_another_service_proxy() {
    same_with_agent(Setup::OtherProxy).unwrap();
}

#[test]
fn with_an_ipsec_policy_that_blocks() {
    same_with_agent(Setup::BlockPolicy).unwrap();
}

/// The traffic that such a policy blocks stays blocked when the agent forwards it: nothing of a connection from outside to a
/// nodePort, whose endpoint is where the policy forbids to go, reaches the other node in plain text.
#[test]
fn an_ipsec_policy_holds_for_services() -> Result<()> {
    let fixture = Fixture::new(Setup::BlockPolicy)?;
    let cluster = &fixture.scenario.cluster;
    let other = &cluster.node(1)?.host.netns;
    other.nft(
        "table inet seen {
            chain prerouting {
                type filter hook prerouting priority raw; policy accept;
                iifname eth0 ip daddr 10.244.2.0/24 counter
                iifname eth0 ip6 daddr fd00:10:244:2::/64 counter
            }
        }",
    )?;
    let _agent = fixture.start_agent(&[])?;
    for ipv4 in [true, false] {
        let to = fixture.scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            let call = cluster.client.call(to).protocol(protocol).timeout(Duration::from_millis(1500));
            let report = call.many(10, 10)?;
            ensure!(report.ok == 0, "{to}, {protocol:?}: {report:?}");
        }
    }
    let seen = other.feed("nft", &["list", "table", "inet", "seen"], "")?;
    ensure!(seen.matches("packets 0 ").count() == 2, "{seen}");
    Ok(())
}

/// Pods may use other ports than usual: with `ip_local_port_range` 1024-65000 many are those that the agent gives out.
#[test]
fn pods_with_a_wide_port_range() -> Result<()> {
    let fixture = Fixture::new(Setup::Masquerade(Masquerade::Plain))?;
    let cluster = &fixture.scenario.cluster;
    let pod = cluster.pod("pod-1b")?;
    pod.netns.sysctl(&[("ipv4/ip_local_port_range", "1024 65000")])?;
    let _agent = fixture.start_agent(&[])?;
    for ipv4 in [true, false] {
        let to = std::net::SocketAddr::new(
            if ipv4 { cluster.client.v4.into() } else { cluster.client.v6.into() },
            proxy_bystander::OUTSIDE_PORTS[0],
        );
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            let call = pod.call(to).protocol(protocol).timeout(Duration::from_millis(1500));
            all_ok(&call.many(400, 16)?, 400)?;
        }
    }
    Ok(())
}

/// Conversations that are there before the agent starts go on while it starts, is killed, starts again, ends and is cleaned up.
fn live_on(setup: Setup) -> Result<()> {
    let fixture = Fixture::new(setup)?;
    let steady = steady(&fixture)?;
    steady.go_on()?;
    let mut agent = fixture.start_agent(&[])?;
    steady.go_on()?;
    agent.kill()?;
    steady.go_on()?;
    agent.start()?;
    steady.go_on()?;
    agent.terminate()?;
    agent.cleanup()?;
    steady.go_on()?;
    steady.end()
}

#[test]
fn conversations_live_on_with_masquerade() {
    live_on(Setup::Masquerade(Masquerade::Plain)).unwrap();
}

#[test]
fn conversations_live_on_with_host_ports() {
    live_on(Setup::HostPorts).unwrap();
}
