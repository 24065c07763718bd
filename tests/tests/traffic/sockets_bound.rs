//! Sockets that are bound to a network interface (`SO_BINDTODEVICE`): DHCP and routing daemons, VRF tools, `curl --interface`.
//!
//! Set-up: two nodes with two routed pods each, pods served by sockets, an agent per node; sockets of pods and nodes
//! are bound to their uplink or to loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Host, Protocol},
    traffic::{Entry, SERVICE_PORT, Scenario, TARGET_PORT, WEB, node_port},
};

/// The interface of pods and the uplink of nodes.
const DEVICE: &str = "eth0";

fn start() -> Result<Scenario> {
    Scenario::start(Cluster::builder().nodes(2), "socket", &[])
}

/// Ten requests from a bound socket, each answered by one of these, with the service as the client's peer.
fn served(client: &Host, target: SocketAddr, protocol: Protocol, expected: &[&str]) -> Result<()> {
    let what = || format!("{} by {protocol:?} to {target}", client.name);
    for reply in client.call(target).protocol(protocol).device(DEVICE).times(10)? {
        let answer = reply.answer.as_ref().with_context(|| format!("{}: {reply:?}", what()))?;
        ensure!(expected.contains(&answer.server.as_str()), "{}: {reply:?}", what());
        ensure!(reply.peer == Some(target), "{}: {reply:?}", what());
    }
    Ok(())
}

/// From a pod every endpoint is behind its interface. From the node those of other nodes are behind the uplink: a socket that is
/// bound to it reaches those without a service, too.
#[test]
fn sockets_bound_to_an_interface_reach_services() -> Result<()> {
    let scenario = start()?;
    let pod = scenario.cluster.pod("pod-1a")?;
    let node = &scenario.cluster.node(0)?.host;
    let remote = scenario.cluster.pod("pod-2a")?;
    let names = ["pod-1b", "pod-2a", "pod-2b"];
    for protocol in Protocol::ALL {
        for is_v4 in [true, false] {
            for entry in [Entry::ClusterIp, Entry::NodePort(0), Entry::NodePort(1)] {
                served(pod, scenario.target(entry, WEB, is_v4)?, protocol, &names)?;
            }
            let endpoint = remote.address_like(scenario.target(Entry::ClusterIp, WEB, is_v4)?.ip());
            served(node, SocketAddr::new(endpoint, TARGET_PORT), protocol, &["pod-2a"])
                .context("without a service")?;
        }
    }
    scenario.apply(WEB, &[remote])?;
    for protocol in Protocol::ALL {
        for is_v4 in [true, false] {
            let target = scenario.target(Entry::ClusterIp, WEB, is_v4)?;
            let call = node.call(target).protocol(protocol);
            proxy_harness::cluster::until(std::time::Duration::from_secs(10), "the one endpoint", || {
                Ok(call.servers(10)?.iter().all(|server| *server == remote.name).then_some(()))
            })?;
            served(node, target, protocol, &["pod-2a"])?;
        }
    }
    Ok(())
}

/// A socket bound to loopback talks only to this host, even where a nodePort has the same number.
#[test]
fn sockets_bound_to_loopback_stay_there() -> Result<()> {
    let scenario = start()?;
    let node = &scenario.cluster.node(0)?.host;
    let loopbacks = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let _server = node.serve_as("loopback", &loopbacks, node_port(WEB))?;
    for protocol in Protocol::ALL {
        for ip in loopbacks {
            let call = node.call(SocketAddr::new(ip, node_port(WEB))).protocol(protocol);
            let bound = call.clone().device("lo").servers(10)?;
            ensure!(bound.iter().all(|server| server == "loopback"), "{protocol:?} to {ip}: {bound:?}");
            let free = call.servers(10)?;
            ensure!(free.iter().all(|server| server != "loopback"), "{protocol:?} to {ip}: {free:?}");
        }
    }
    // A pod's cluster IP is not on its loopback.
    let pod = scenario.cluster.pod("pod-1a")?;
    let target = SocketAddr::new(Ipv4Addr::new(10, 96, 0, WEB).into(), SERVICE_PORT);
    let reply = pod.call(target).device("lo").timeout(std::time::Duration::from_millis(300)).once()?;
    ensure!(reply.answer.is_none(), "{reply:?}");
    Ok(())
}
