//! From kube-proxy to proxy-agent on a node in use: connections that kube-proxy's rules translate live on. Needs root.
//!
//! Set-up: two nodes with kube-proxy's rules; connections are open when an agent starts on the first node in the mode
//! of the test, and when the rules go.

use anyhow::{Result, bail};
use proxy_bystander::{Steady, kube_proxy};
use proxy_harness::{
    cluster::{Cluster, Protocol},
    traffic::{Entry, Scenario, WEB},
};

/// Connections of pods and of clients outside, to a cluster IP and a nodePort, with several endpoints on both nodes. The agent serves
/// the same Service, but has no flow of these.
fn connections(scenario: &Scenario) -> Result<Steady> {
    let cluster = &scenario.cluster;
    let mut steady = Steady::none();
    let (pod, client) = (cluster.pod("pod-1a")?, &cluster.client);
    for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
        // Often enough to meet each of the endpoints.
        for _ in 0..6 {
            steady.begin(pod, scenario.target(Entry::ClusterIp, WEB, true)?, None, protocol)?;
            steady.begin(pod, scenario.target(Entry::NodePort(0), WEB, true)?, None, protocol)?;
            steady.begin(client, scenario.target(Entry::NodePort(0), WEB, true)?, None, protocol)?;
        }
    }
    steady.go_on()?;
    Ok(steady)
}

/// Starts the agent once for each of these modes, one after the other; kube-proxy's rules stay.
fn live_on(modes: &[&str]) -> Result<()> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "both")?;
    let cluster = &scenario.cluster;
    cluster.node(0)?.host.netns.nft(&kube_proxy(&scenario, WEB)?)?;
    let steady = connections(&scenario)?;
    for mode in modes {
        let mut agent = cluster.start_agent(0, &["--pod-datapath", mode])?;
        steady.go_on()?;
        agent.terminate()?;
    }
    steady.go_on()?;
    // New connections are the agent's: both serve side by side.
    for (from, entry) in [(cluster.pod("pod-1a")?, Entry::ClusterIp), (&cluster.client, Entry::NodePort(0))] {
        let report = from.call(scenario.target(entry, WEB, true)?).many(20, 4)?;
        if report.failed > 0 {
            bail!("new connections to {entry}: {report:?}");
        }
    }
    steady.end()
}

#[test]
fn connections_of_kube_proxy_live_on_with_both() {
    live_on(&["both"]).unwrap();
}

/// The default.
#[test]
fn connections_of_kube_proxy_live_on_with_auto() {
    live_on(&["auto"]).unwrap();
}

#[test]
fn connections_of_kube_proxy_live_on_from_socket_to_both() {
    live_on(&["socket", "both"]).unwrap();
}
