//! The table.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    EMPTY, Entry, FAMILIES, HAIRPIN, HOST_NETWORK, SERVICE_PORT, SINGLE, Scenario, WEB, cluster_ip, family,
    node_port,
};
use crate::cluster::{Failures, Host, Protocol, until};

/// Number of requests that reach each of three backends, but for one time in three million.
const ENOUGH_FOR_ALL: usize = 40;

/// All cases that hold while nothing changes.
pub fn all(scenario: &Scenario) -> Result<Failures> {
    let mut failures = Failures::default();
    served(scenario, &mut failures)?;
    refused(scenario, &mut failures)?;
    sockets(scenario, &mut failures)?;
    not_for_all(scenario, &mut failures)?;
    Ok(failures)
}

/// From where a service is used, by which address.
fn ways(scenario: &Scenario) -> Result<Vec<(&Host, Entry)>> {
    let cluster = &scenario.cluster;
    let node_ports: Vec<_> = (0..cluster.nodes.len()).map(Entry::NodePort).collect();
    let mut ways = Vec::new();
    for pod in [cluster.pod("pod-1a")?, cluster.pod("pod-3a")?] {
        ways.extend([Entry::ClusterIp].iter().chain(&node_ports).map(|entry| (pod, *entry)));
    }
    for node in [&cluster.node(0)?.host, &cluster.node(2)?.host] {
        let entries = [Entry::ClusterIp, Entry::Localhost];
        ways.extend(entries.iter().chain(&node_ports).map(|entry| (node, *entry)));
    }
    ways.extend(node_ports.iter().map(|entry| (&cluster.client, *entry)));
    Ok(ways)
}

/// From everywhere, over everything, every backend answers, and each server sees the expected source.
fn served(scenario: &Scenario, failures: &mut Failures) -> Result<()> {
    for (client, entry) in ways(scenario)? {
        for (service, ipv4, protocol) in combinations([WEB, SINGLE, HAIRPIN, HOST_NETWORK]) {
            let what = format!("{} -> {entry} of {service}, {} {protocol:?}", client.name, family(ipv4));
            failures.case(what, || {
                let target = scenario.target(entry, service, ipv4)?;
                let count = if service == WEB { ENOUGH_FOR_ALL } else { 2 };
                let mut seen = Vec::new();
                for reply in client.call(target).protocol(protocol).times(count)? {
                    seen.push(scenario.check(client, entry, target, &reply)?);
                }
                seen.sort();
                seen.dedup();
                let expected: Vec<_> = scenario.backends(service)?.iter().map(|host| &host.name).collect();
                ensure!(seen.iter().eq(expected), "answered by {seen:?}");
                Ok(())
            });
        }
    }
    Ok(())
}

fn combinations<const N: usize>(services: [u8; N]) -> Vec<(u8, bool, Protocol)> {
    let mut all = Vec::new();
    for service in services {
        for ipv4 in FAMILIES {
            all.extend(Protocol::ALL.map(|protocol| (service, ipv4, protocol)));
        }
    }
    all
}

/// A service without endpoints refuses; sockets get the error at once.
///
/// Where packets are refused, the ICMP message arrives before `connect()` has released its socket, which then gets it only from the
/// answer to the next SYN, a second later. So cases run side by side.
fn refused(scenario: &Scenario, failures: &mut Failures) -> Result<()> {
    let mut cases = Vec::new();
    for (client, entry) in ways(scenario)? {
        for (service, ipv4, protocol) in combinations([EMPTY]) {
            let what = format!("{} -> {entry} without endpoints, {} {protocol:?}", client.name, family(ipv4));
            cases.push((what, (client, entry, scenario.target(entry, service, ipv4)?, protocol)));
        }
    }
    failures.side_by_side(cases, |(client, entry, target, protocol)| {
        // Other nodes' nodePorts and outside clients are served packet by packet, and so may pods be.
        let at_once = match (client.node, entry) {
            (None, _) => false,
            (Some(node), Entry::NodePort(at)) if at != node => false,
            _ => scenario.pod_datapath != "tc" || client.name.starts_with("node"),
        };
        // An unconnected UDP socket does not get the ICMP errors of its datagrams.
        let gets_error = at_once || protocol != Protocol::Udp;
        let timeout = Duration::from_millis(if gets_error { 2900 } else { 50 });
        let reply = client.call(target).protocol(protocol).timeout(timeout).once()?;
        let expected = if gets_error { "ECONNREFUSED" } else { "ETIMEDOUT" };
        ensure!(reply.error.as_deref() == Some(expected), "{reply:?}");
        ensure!(!at_once || reply.elapsed_ms < 500, "only after {} ms", reply.elapsed_ms);
        Ok(())
    });
    Ok(())
}

/// Programs' uses of their sockets.
fn sockets(scenario: &Scenario, failures: &mut Failures) -> Result<()> {
    let pod = scenario.cluster.pod("pod-1a")?;
    let node = &scenario.cluster.node(0)?.host;
    let vip: SocketAddr = (cluster_ip(SINGLE, true), SERVICE_PORT).into();
    for client in [pod, node] {
        for protocol in Protocol::ALL {
            failures.case(format!("{}: IPv4 by an IPv6 socket, {protocol:?}", client.name), || {
                let reply = client.call(vip).protocol(protocol).v4_mapped().once()?;
                let peer = reply.peer.with_context(|| format!("{:?}", reply.error))?;
                ensure!(peer.is_ipv6() && peer.ip().to_canonical() == vip.ip(), "peer {peer}");
                ensure!(peer.port() == vip.port(), "peer {peer}");
                Ok(())
            });
            for ipv4 in FAMILIES {
                let what = format!("{}: one socket, many requests, {protocol:?}", client.name);
                failures.case(format!("{what} {}", family(ipv4)), || {
                    let target = scenario.target(Entry::ClusterIp, WEB, ipv4)?;
                    for reply in client.call(target).protocol(protocol).keep_alive().times(10)? {
                        scenario.check(client, Entry::ClusterIp, target, &reply)?;
                    }
                    Ok(())
                });
            }
        }
    }
    for client in [pod, node] {
        // Large requests of a pod that is served by packets reach the programs in fragments, which they leave alone.
        if scenario.pod_datapath == "tc" && client.name == pod.name {
            continue;
        }
        for (service, ipv4, protocol) in combinations([WEB]) {
            for entry in [Entry::ClusterIp, Entry::NodePort(0)] {
                let what =
                    format!("{} -> {entry}: large requests, {} {protocol:?}", client.name, family(ipv4));
                failures.case(what, || {
                    let target = scenario.target(entry, service, ipv4)?;
                    for size in [2_000, 9_000] {
                        for reply in client.call(target).protocol(protocol).size(size).times(4)? {
                            scenario.check(client, entry, target, &reply)?;
                        }
                    }
                    Ok(())
                });
            }
        }
    }
    for (ipv4, protocol) in [(true, Protocol::Tcp), (false, Protocol::Tcp), (true, Protocol::ConnectedUdp)] {
        failures.case(format!("a bound source is kept, {} {protocol:?}", family(ipv4)), || {
            let target = scenario.target(Entry::ClusterIp, SINGLE, ipv4)?;
            let source = SocketAddr::new(pod.address_like(target.ip()), 45_000);
            let reply = pod.call(target).protocol(protocol).bind(source).once()?;
            let answer = reply.answer.with_context(|| format!("{:?}", reply.error))?;
            ensure!(answer.client == source, "the server sees {}", answer.client);
            Ok(())
        });
    }
    Ok(())
}

/// Denied clients.
fn not_for_all(scenario: &Scenario, failures: &mut Failures) -> Result<()> {
    let pod = scenario.cluster.pod("pod-1a")?;
    for ipv4 in FAMILIES {
        failures.case(format!("a pod's localhost is its own, {}", family(ipv4)), || {
            let reply = pod.call(scenario.target(Entry::Localhost, WEB, ipv4)?).once()?;
            ensure!(reply.error.as_deref() == Some("ECONNREFUSED"), "{reply:?}");
            Ok(())
        });
        failures.case(format!("cluster IPs are internal, {}", family(ipv4)), || {
            let target = scenario.target(Entry::ClusterIp, SINGLE, ipv4)?;
            let entry = &scenario.cluster.node(0)?.host;
            let route = format!("{} via {}", target.ip(), entry.address_like(target.ip()));
            scenario.cluster.fabric.ip(&[format!("route replace {route}")])?;
            let reply = scenario.cluster.client.call(target).timeout(Duration::from_millis(300)).once();
            scenario.cluster.fabric.ip(&[format!("route del {route}")])?;
            let reply = reply?;
            ensure!(reply.error.is_some(), "answered: {reply:?}");
            Ok(())
        });
        failures.case(format!("other ports of a node are its own, {}", family(ipv4)), || {
            let mut target = scenario.target(Entry::NodePort(2), WEB, ipv4)?;
            target.set_port(super::TARGET_PORT);
            let servers = scenario.cluster.client.call(target).servers(1)?;
            ensure!(servers == ["node-3"], "{servers:?} answered");
            Ok(())
        });
    }
    Ok(())
}

/// Many bytes on every path.
pub fn bulk(scenario: &Scenario, bytes: u64, failures: &mut Failures) -> Result<()> {
    let cluster = &scenario.cluster;
    let paths = [
        (cluster.pod("pod-1a")?, Entry::ClusterIp),
        (cluster.pod("pod-3a")?, Entry::ClusterIp),
        (&cluster.node(0)?.host, Entry::ClusterIp),
        (&cluster.node(2)?.host, Entry::Localhost),
        (&cluster.client, Entry::NodePort(0)),
        (&cluster.client, Entry::NodePort(2)),
    ];
    for (client, entry) in paths {
        for ipv4 in FAMILIES {
            failures.case(format!("{} -> {entry} in bulk, {}", client.name, family(ipv4)), || {
                let report = client.call(scenario.target(entry, SINGLE, ipv4)?).bulk(bytes)?;
                ensure!(report.bytes == bytes && report.server == "pod-1b", "{report:?}");
                Ok(())
            });
        }
    }
    Ok(())
}

/// An endpoint that is taken away gets no new connection, loses none it has, and comes back.
pub fn endpoints_come_and_go(scenario: &Scenario, failures: &mut Failures) -> Result<()> {
    let cluster = &scenario.cluster;
    let clients = [
        (cluster.pod("pod-1a")?, Entry::ClusterIp),
        (&cluster.node(0)?.host, Entry::ClusterIp),
        (&cluster.client, Entry::NodePort(2)),
    ];
    let backends = scenario.backends(WEB)?;
    let (rest, gone) = (&backends[1..], &backends[0].name);
    let calls = clients
        .iter()
        .map(|(client, entry)| Ok(client.call(scenario.target(*entry, WEB, true)?)))
        .collect::<Result<Vec<_>>>()?;
    // Some of six connections surely are with the endpoint that goes.
    let loads = calls.iter().flat_map(|call| (0..6).map(|_| call.clone().keep_alive().load()));
    let loads = loads.collect::<Result<Vec<_>>>()?;
    loads.iter().try_for_each(|load| load.wait_for(1))?;
    scenario.apply(WEB, rest)?;
    for call in &calls {
        failures.case(format!("after {gone} was taken away: {call:?}"), || {
            let soon = Duration::from_secs(5);
            until(soon, "the endpoint to go", || {
                Ok((!call.servers(ENOUGH_FOR_ALL)?.contains(gone)).then_some(()))
            })?;
            for protocol in Protocol::ALL {
                let servers = call.clone().protocol(protocol).servers(ENOUGH_FOR_ALL)?;
                ensure!(!servers.contains(gone), "{gone} still gets new connections by {protocol:?}");
            }
            Ok(())
        });
    }
    loads.iter().try_for_each(|load| load.wait_for(20))?;
    scenario.apply(WEB, &backends)?;
    for call in &calls {
        failures.case(format!("after {gone} came back: {call:?}"), || {
            until(Duration::from_secs(5), "the endpoint to come back", || {
                Ok(call.servers(ENOUGH_FOR_ALL)?.contains(gone).then_some(()))
            })
        });
    }
    for load in loads {
        let report = load.stop()?;
        failures.case("connections live while endpoints come and go", || {
            ensure!(report.failed == 0, "{report:?}");
            Ok(())
        });
    }
    failures.case("a service that loses its last endpoint refuses, and recovers", || {
        let call = cluster.client.call((cluster.node(1)?.host.v4, node_port(SINGLE)).into());
        scenario.apply(SINGLE, &[])?;
        until(Duration::from_secs(10), "refusal", || {
            Ok((call.once()?.error.as_deref() == Some("ECONNREFUSED")).then_some(()))
        })?;
        scenario.apply(SINGLE, &scenario.backends(SINGLE)?)?;
        until(Duration::from_secs(5), "service", || Ok(call.once()?.answer.is_some().then_some(())))
    });
    Ok(())
}
