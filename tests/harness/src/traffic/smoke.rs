//! The least that must work on every kernel: each way once, for clusters of two nodes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Entry, FAMILIES, HAIRPIN, SINGLE, Scenario, WEB, family};
use crate::{
    cluster::{Failures, Host, Load, Protocol},
    kernel_capabilities::MissingCapability,
};

/// One processor serves all processes here, and it may be an emulated one.
const PATIENCE: Duration = Duration::from_secs(6);

/// TCP and UDP, without the variants of sockets.
pub const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// From where, by which address. The backend is `pod-1b`: on this node or the other, behind SNAT or not.
fn ways(scenario: &Scenario) -> Result<Vec<(&Host, Entry, u8)>> {
    let cluster = &scenario.cluster;
    let (near, far) = (cluster.pod("pod-1a")?, cluster.pod("pod-2a")?);
    let (node, other) = (&cluster.node(0)?.host, &cluster.node(1)?.host);
    let mut ways = vec![
        (near, Entry::ClusterIp, SINGLE),
        (far, Entry::ClusterIp, SINGLE),
        (near, Entry::ClusterIp, WEB),
        (near, Entry::ClusterIp, HAIRPIN),
        (far, Entry::NodePort(0), SINGLE),
        (near, Entry::NodePort(1), SINGLE),
        (&cluster.client, Entry::NodePort(0), SINGLE),
        (&cluster.client, Entry::NodePort(1), SINGLE),
        (&cluster.client, Entry::NodePort(1), WEB),
    ];
    // With the cookie, the node's own sockets are distinguished from its pods': for localhost, and for all
    // sockets if pods are served by packets.
    let knows_own_sockets = !MissingCapability::NetnsCookie.is_here()?;
    if knows_own_sockets || scenario.pod_datapath != "tc" {
        ways.extend([(node, Entry::ClusterIp, WEB), (other, Entry::ClusterIp, SINGLE)]);
    }
    if knows_own_sockets {
        ways.push((other, Entry::Localhost, SINGLE));
    } else {
        MissingCapability::NetnsCookie.note();
    }
    Ok(ways)
}

/// Tries each way a few times.
pub fn smoke(scenario: &Scenario, when: &str, protocols: &[Protocol], failures: &mut Failures) -> Result<()> {
    for (client, entry, service) in ways(scenario)? {
        for ipv4 in FAMILIES {
            for &protocol in protocols {
                let family = family(ipv4);
                let what = format!("{when}: {} -> {entry} of {service}, {family} {protocol:?}", client.name);
                failures.case(what, || {
                    let target = scenario.target(entry, service, ipv4)?;
                    for reply in client.call(target).protocol(protocol).timeout(PATIENCE).times(3)? {
                        scenario.check(client, entry, target, &reply)?;
                    }
                    Ok(())
                });
            }
        }
    }
    failures.case(format!("{when}: nothing is INVALID to conntrack"), || {
        for node in &scenario.cluster.nodes {
            let dropped = node.invalid_packets()?;
            ensure!(dropped == 0, "{dropped} packets on {}", node.host.name);
        }
        Ok(())
    });
    Ok(())
}

/// The same while the agents are away, and when they are back. No request fails.
pub fn smoke_over_restart(scenario: &mut Scenario, failures: &mut Failures) -> Result<()> {
    let loads = loads(scenario)?;
    loads.iter().try_for_each(|load| load.wait_for(5))?;
    for agent in &mut scenario.agents {
        agent.kill()?;
    }
    smoke(scenario, "without agents", &[Protocol::Tcp], failures)?;
    for agent in &mut scenario.agents {
        agent.start()?;
    }
    smoke(scenario, "after the restart", &BOTH, failures)?;
    for load in loads {
        load.wait_for(5)?;
        let report = load.stop()?;
        failures.case("a load continues over the restart", || {
            ensure!(report.failed == 0, "{report:?}");
            Ok(())
        });
    }
    Ok(())
}

fn loads(scenario: &Scenario) -> Result<Vec<Load>> {
    let ways =
        [(scenario.cluster.pod("pod-2a")?, Entry::ClusterIp), (&scenario.cluster.client, Entry::NodePort(1))];
    let mut loads = Vec::new();
    for (client, entry) in ways {
        for protocol in BOTH {
            let target = scenario.target(entry, SINGLE, true)?;
            let call = client.call(target).protocol(protocol).timeout(PATIENCE);
            loads.push(call.keep_alive().every(Duration::from_millis(100)).load()?);
        }
    }
    Ok(loads)
}
