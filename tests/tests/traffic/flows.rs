//! Expired flows are removed, those in use are not.
//!
//! Set-up: two nodes with two routed pods each, pods served by sockets, UDP timeouts of five seconds; flows are those
//! of clients of nodePorts.

use std::time::Duration;

use anyhow::{Context as _, Result};
use proxy_harness::{
    cluster::{Agent, Cluster, Protocol, until},
    traffic::{Entry, Scenario, WEB},
};

/// The agent goes over all flows twice a minute.
const SOON: Duration = Duration::from_secs(150);

/// States of the flows of a protocol, as `debug flows` shows them.
fn states(agent: &Agent, protocol: &str) -> Result<Vec<String>> {
    let flows: Vec<serde_json::Value> = serde_json::from_str(&agent.debug(&["flows", "-o", "json"])?)?;
    let of_protocol = flows.iter().filter(|flow| flow["protocol"] == protocol);
    of_protocol.map(|flow| Ok(flow["state"].as_str().context("no state")?.to_owned())).collect()
}

#[test]
fn flows_end_when_they_are_over() -> Result<()> {
    let args = ["--conntrack-udp-timeout=5s", "--conntrack-udp-timeout-stream=5s"];
    let scenario = Scenario::start(Cluster::builder().nodes(2), "socket", &args)?;
    let agent = &scenario.agents[0];
    let client = &scenario.cluster.client;
    let to = scenario.target(Entry::NodePort(0), WEB, true)?;
    // A flow in use, as slowly as possible.
    let kept =
        client.call(to).protocol(Protocol::ConnectedUdp).keep_alive().every(Duration::from_secs(2)).load()?;
    let open = client.call(to).keep_alive().every(Duration::from_secs(3)).load()?;
    kept.wait_for(1)?;
    open.wait_for(1)?;
    client.call(to).protocol(Protocol::Udp).servers(5)?;
    client.call(to).servers(5)?;
    let udp = states(agent, "UDP")?;
    // The sixth may have had its second request.
    assert!(udp.len() == 6 && udp.iter().filter(|state| *state == "replied").count() >= 5, "{udp:?}");
    let tcp = states(agent, "TCP")?;
    assert!(tcp.len() == 6 && tcp.iter().filter(|state| *state == "closed").count() == 5, "{tcp:?}");
    until(SOON, "expired flows to go", || {
        let left = (states(agent, "UDP")?, states(agent, "TCP")?);
        Ok((left == (vec!["established".to_owned()], vec!["established".to_owned()])).then_some(()))
    })?;
    for load in [kept, open] {
        let report = load.stop()?;
        assert_eq!(report.failed, 0, "{report:?}");
    }
    Ok(())
}
