//! `--snat-address` and `--snat-ports`: which source an endpoint of another node sees. Needs root.
//!
//! Set-up: two nodes; the agent of the first has `--snat-address` and `--snat-ports`, and the endpoints are on the
//! second, which shows the sources that it sees.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Protocol},
    traffic::{Entry, SINGLE, Scenario},
};

/// Two addresses of node-1 besides its own, of each family, and one that no node has.
const GIVEN: [&str; 5] = ["192.168.99.77", "192.168.99.78", "fd00:99::77", "fd00:99::78", "192.168.99.99"];

#[test]
fn given_addresses_are_the_sources_towards_remote_endpoints() -> Result<()> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "socket")?;
    let cluster = &scenario.cluster;
    scenario.apply(SINGLE, &[cluster.pod("pod-2a")?])?;
    let there = &GIVEN[..4];
    let lines: Vec<String> = there
        .iter()
        .map(|ip| {
            if ip.contains(':') {
                format!("addr add {ip}/64 dev eth0 nodad")
            } else {
                format!("addr add {ip}/24 dev eth0")
            }
        })
        .collect();
    cluster.node(0)?.host.netns.ip(&lines)?;
    let args = ["--snat-address", &GIVEN.join(","), "--snat-ports", "30000-32000"];
    let agent = cluster.start_agent(0, &args)?;
    for ipv4 in [true, false] {
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            let to = scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
            let mut seen = BTreeSet::new();
            // By the client's address one of them comes first; ports that are taken lead to the other, so mostly one is seen.
            for _ in 0..20 {
                let reply = cluster.client.call(to).protocol(protocol).once()?;
                let client = reply.answer.with_context(|| format!("{protocol:?}: {:?}", reply.error))?.client;
                ensure!((30_000..=32_000).contains(&client.port()), "port {}", client.port());
                seen.insert(client.ip());
            }
            let given: BTreeSet<IpAddr> = there.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?;
            ensure!(seen.is_subset(&given), "{protocol:?}: the endpoint sees {seen:?}");
        }
    }
    let log = agent.log();
    ensure!(log.contains("192.168.99.99 (--snat-address)"), "{log}");
    Ok(())
}
