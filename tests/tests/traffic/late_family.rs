//! A family of addresses that a node gets after its agent has started, with the first Service of the family. Needs root.
//!
//! Set-up: two nodes with two routed pods each, `--pod-datapath both`. The first node has no IPv6 address when its agent starts, and the
//! Service has an IPv4 cluster IP alone; then both get IPv6, under a load of IPv4.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Endpoint, Failures, Host, Protocol, Service, until},
    traffic::{
        Entry, Loads, SERVICE_PORT, Scenario, TARGET_PORT, WEB, cluster_ip, node_port, single::conclude,
    },
};

/// Enough for an agent that is not optimised, on a busy machine: it loads all programs again.
const SOON: Duration = Duration::from_secs(60);
const ENDPOINTS: [&str; 3] = ["pod-1b", "pod-2a", "pod-2b"];

/// The capacity of the flow map of a family, in entries.
fn capacity(host: &Host, family: &str) -> Result<u64> {
    let text = host.netns.get("127.0.0.1:10249", "/metrics")?.body;
    let metric = format!("proxy_agent_map_capacity{{map=\"flows_{family}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&metric));
    line.with_context(|| format!("no {metric}"))?.trim().parse().with_context(|| metric.clone())
}

/// All endpoints answer by IPv6: a pod's sockets and packets, the node's sockets, and packets from outside.
fn serves_ipv6(scenario: &Scenario) -> Result<()> {
    let cluster = &scenario.cluster;
    let mut failures = Failures::default();
    for (client, entry) in [
        (cluster.pod("pod-1a")?, Entry::ClusterIp),
        (&cluster.node(0)?.host, Entry::ClusterIp),
        (&cluster.client, Entry::NodePort(0)),
    ] {
        let to = scenario.target(entry, WEB, false)?;
        for protocol in Protocol::ALL {
            failures.case(format!("{} -> {to}, {protocol:?}", client.name), || {
                let call = client.call(to).protocol(protocol);
                until(SOON, "the first answer", || {
                    Ok(call.clone().timeout(Duration::from_millis(500)).once()?.answer)
                })?;
                let mut servers = call.servers(40)?;
                servers.sort();
                servers.dedup();
                ensure!(servers == ENDPOINTS, "{servers:?} answer");
                Ok(())
            });
        }
    }
    conclude(failures, &scenario.agents)
}

#[test]
fn ipv6_comes_to_a_node_that_serves_ipv4() -> Result<()> {
    let cluster = Cluster::builder().nodes(2).build()?;
    let pods = cluster.nodes.iter().flat_map(|node| &node.pods);
    let servers = pods.map(|pod| pod.serve(TARGET_PORT)).collect::<Result<_>>()?;
    let mut scenario = Scenario { agents: Vec::new(), servers, pod_datapath: "both", cluster };
    let cluster = &scenario.cluster;
    let node = cluster.node(0)?.host.clone();
    let address = format!("{}/64 dev eth0", node.v6);
    node.netns.ip(&[format!("addr del {address}")])?;
    let web = Service::new("web", &[cluster_ip(WEB, true)]).tcp_and_udp(
        SERVICE_PORT,
        TARGET_PORT,
        Some(node_port(WEB)),
    );
    let endpoints: Vec<_> = scenario.backends(WEB)?.into_iter().map(Endpoint::from).collect();
    cluster.manifests.apply(&web, &endpoints)?;
    scenario.agents = cluster.start_agents(&["--pod-datapath", "both"])?;
    let (v4, v6) = (capacity(&node, "v4")?, capacity(&node, "v6")?);
    ensure!(v4 > 1000 && v6 == 1, "without use for IPv6: room for {v6} flows, and {v4} of IPv4");
    let other = capacity(&scenario.cluster.node(1)?.host, "v6")?;
    ensure!(other == v4, "a node that has both families: room for {other} IPv6 flows");

    let loads = {
        let cluster = &scenario.cluster;
        let pod = cluster.pod("pod-1a")?;
        let ways =
            [(pod, Entry::ClusterIp), (&node, Entry::ClusterIp), (&cluster.client, Entry::NodePort(0))];
        Loads::patient(&scenario, &ways, Duration::from_secs(10))?
    };
    loads.wait_for(20)?;
    node.netns.ip(&[format!("addr add {address} nodad")])?;
    scenario.apply(WEB, &scenario.backends(WEB)?)?;
    serves_ipv6(&scenario)?;
    let v6 = capacity(&node, "v6")?;
    ensure!(v6 == v4, "room for {v6} IPv6 flows, and {v4} of IPv4");
    loads.wait_for(20)?;

    // A restart keeps them.
    scenario.agents[0].kill()?;
    loads.wait_for(20)?;
    scenario.agents[0].start()?;
    serves_ipv6(&scenario)?;
    loads.none_failed()
}
