//! The agent may end and come back at any moment: traffic does not notice.
//!
//! Set-up: three nodes with two routed pods each; loads run from pods, nodes and outside while agents are killed, ended
//! and started. By sockets, by packets, and by native XDP with programs at the far side.

use std::time::Duration;

use anyhow::Result;
use proxy_harness::{
    cluster::{Cluster, until},
    rounds,
    traffic::{Entry, Loads, Scenario, WEB},
};

fn survives(pod_datapath: &'static str, args: &[&str], xdp: bool) -> Result<()> {
    let builder = Cluster::builder().offload(!xdp).xdp_pass(xdp);
    let mut scenario = Scenario::start(builder, pod_datapath, args)?;
    let loads = {
        let cluster = &scenario.cluster;
        let (pod, node) = (cluster.pod("pod-1a")?, &cluster.node(0)?.host);
        let ways = [
            (pod, Entry::ClusterIp),
            (node, Entry::ClusterIp),
            (node, Entry::Localhost),
            (&cluster.client, Entry::NodePort(0)),
            (&cluster.client, Entry::NodePort(2)),
        ];
        Loads::start(&scenario, &ways)?
    };
    loads.wait_for(20)?;
    for round in 0..rounds(3) {
        for agent in &mut scenario.agents {
            if round % 3 == 1 { agent.terminate()? } else { agent.kill()? }
        }
        loads.wait_for(20)?;
        for agent in &mut scenario.agents {
            agent.start()?;
        }
        loads.wait_for(20)?;
    }
    loads.none_failed()
}

#[test]
fn no_request_is_lost_by_sockets() {
    survives("socket", &[], false).unwrap();
}

#[test]
fn no_request_is_lost_by_packets() {
    survives("tc", &[], false).unwrap();
}

#[test]
fn no_request_is_lost_by_xdp() {
    survives("both", &["--xdp", "native"], true).unwrap();
}

/// Killed at any moment of its start, the agent starts well the next time.
#[test]
fn killed_while_starting() {
    let mut scenario = Scenario::start(Cluster::builder().nodes(3), "socket", &[]).unwrap();
    let load = {
        let client = &scenario.cluster.client;
        client.call(scenario.target(Entry::NodePort(0), WEB, true).unwrap()).load().unwrap()
    };
    load.wait_for(10).unwrap();
    scenario.agents[0].kill().unwrap();
    let node = &scenario.cluster.nodes[0];
    let args = scenario.cluster.agent_args(node, &["--pod-datapath", "socket"]);
    for milliseconds in [1, 5, 10, 20, 50, 100, 200, 400] {
        let time = Duration::from_millis(milliseconds);
        let (code, output) = scenario.cluster.try_agent(node, &args, time).unwrap();
        assert_eq!(code, None, "ended by itself: {output}");
    }
    scenario.agents[0].start().unwrap();
    let report = load.stop().unwrap();
    assert_eq!(report.failed, 0, "{report:?}");
}

/// Changes while no agent ran are in place when one is healthy again.
#[test]
fn catches_up() {
    let mut scenario = Scenario::start(Cluster::builder(), "socket", &[]).unwrap();
    scenario.agents.iter_mut().for_each(|agent| agent.kill().unwrap());
    let only = &scenario.backends(WEB).unwrap()[2..];
    scenario.apply(WEB, only).unwrap();
    let target = scenario.target(Entry::NodePort(0), WEB, true).unwrap();
    let before = scenario.cluster.client.call(target).servers(40).unwrap();
    assert!(before.iter().any(|server| *server != only[0].name), "no agent runs, yet the change took effect");
    let name = only[0].name.clone();
    scenario.agents.iter_mut().for_each(|agent| agent.start().unwrap());
    let after = scenario.cluster.client.call(target).servers(40).unwrap();
    assert!(after.iter().all(|server| *server == name), "{after:?}");
    // The service goes as well, if its file is gone.
    scenario.agents.iter_mut().for_each(|agent| agent.kill().unwrap());
    scenario.cluster.manifests.remove("web.yaml").unwrap();
    scenario.agents.iter_mut().for_each(|agent| agent.start().unwrap());
    let pod = scenario.cluster.pod("pod-1a").unwrap();
    let call = pod.call(scenario.target(Entry::NodePort(0), WEB, true).unwrap());
    until(Duration::from_secs(5), "the service to go", || {
        Ok((call.once()?.error.as_deref() == Some("ECONNREFUSED")).then_some(()))
    })
    .unwrap();
}
