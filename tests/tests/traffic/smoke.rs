//! The least that must work on every kernel: small clusters, each way once. `cargo xtask vm` runs this on old kernels.
//!
//! Set-up: two nodes with two routed pods each and an agent per node: pods by sockets with a restart, pods by packets
//! with generic XDP, `check` on one node, uplinks that are VLAN devices or bonds.

use std::time::Duration;

use anyhow::{Context, Result};
use proxy_harness::{
    cluster::{Builder, Cluster, Failures, Protocol, Uplink, until},
    kernel_capabilities::MissingCapability,
    traffic::{self, BOTH, Entry, SINGLE, Scenario},
};

/// The bond notices, and the processor may be an emulated one.
const PATIENCE: Duration = Duration::from_secs(20);

fn two_nodes() -> Builder {
    Cluster::builder().nodes(2)
}

fn verdict(scenario: &Scenario, failures: Failures) -> Result<()> {
    failures.verdict().inspect_err(|_| {
        for agent in &scenario.agents {
            println!("{}", agent.log());
        }
    })
}

#[test]
fn pods_by_sockets_and_a_restart() -> Result<()> {
    let mut scenario = Scenario::start(two_nodes(), "socket", &[])?;
    let mut failures = Failures::default();
    traffic::smoke(&scenario, "at first", &Protocol::ALL, &mut failures)?;
    traffic::smoke_over_restart(&mut scenario, &mut failures)?;
    verdict(&scenario, failures)
}

#[test]
fn pods_by_packets_and_generic_xdp() -> Result<()> {
    // XDP computes checksums itself: CHECKSUM_PARTIAL packets are not for it.
    let scenario = Scenario::start(two_nodes().offload(false), "tc", &["--xdp", "generic"])?;
    let mut failures = Failures::default();
    traffic::smoke(&scenario, "by packets", &Protocol::ALL, &mut failures)?;
    verdict(&scenario, failures)
}

/// A missing capability of this kernel is not a failure.
#[test]
fn a_check_fails_nowhere() -> Result<()> {
    // The verifier of an emulated processor is slow.
    const VERIFIED: Duration = Duration::from_secs(300);
    let cluster = Cluster::builder().nodes(1).build()?;
    let node = cluster.node(0)?;
    let mut args = cluster.agent_args(node, &[]);
    args[0] = "check".to_owned();
    let (code, table) = cluster.try_agent(node, &args, VERIFIED)?;
    println!("{table}");
    anyhow::ensure!(code == Some(0), "exit code {code:?}");
    Ok(())
}

/// Clusters whose uplinks are such devices; `None`, with a printed line, if the kernel lacks them.
fn stacked(uplink: Uplink) -> Result<Option<(Scenario, Failures)>> {
    let mut scenario = Scenario::without_agents(two_nodes(), "socket")?;
    if let Err(error) = scenario.cluster.stack_uplinks(uplink) {
        error.downcast::<MissingCapability>()?.note();
        return Ok(None);
    }
    let args = ["--pod-datapath", "socket", "--uplink", uplink.device()];
    scenario.agents = scenario.cluster.start_agents(&args)?;
    let mut failures = Failures::default();
    traffic::smoke(&scenario, uplink.device(), &BOTH, &mut failures)?;
    Ok(Some((scenario, failures)))
}

#[test]
fn vlan_uplinks() -> Result<()> {
    let Some((scenario, failures)) = stacked(Uplink::Vlan)? else { return Ok(()) };
    verdict(&scenario, failures)
}

#[test]
fn bonded_uplinks() -> Result<()> {
    let Some((scenario, mut failures)) = stacked(Uplink::Bond)? else { return Ok(()) };
    // The other half takes over, flows included.
    let cluster = &scenario.cluster;
    let call = cluster.client.call(scenario.target(Entry::NodePort(1), SINGLE, true)?);
    let load = call.keep_alive().timeout(PATIENCE).load()?;
    load.wait_for(3)?;
    for node in &cluster.nodes {
        node.host.netns.ip(&["link set eth0 down".to_owned()]).context("the first half")?;
    }
    failures.case("the bond's other half takes over", || {
        let once = cluster.client.call(scenario.target(Entry::NodePort(0), SINGLE, true)?);
        until(PATIENCE, "an answer", || Ok(once.once()?.answer.map(drop)))?;
        load.wait_for(10)
    });
    traffic::smoke(&scenario, "by the other half", &[Protocol::Tcp], &mut failures)?;
    verdict(&scenario, failures)
}
