//! Large transfers on every path through a service: their results must not depend on the network's shape.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Entry, FAMILIES, HAIRPIN, SINGLE, Scenario, TARGET_PORT, family};
use crate::cluster::{Failures, Host, PathMtu, Reply};

/// A datagram of several fragments.
const DATAGRAM: usize = 9_000;
/// The first may be lost on each link whose MTU must be learnt, in each direction.
const ATTEMPTS: usize = 4;
/// For one of them.
const PATIENCE: Duration = Duration::from_millis(400);

/// The transfers.
#[derive(Clone, Copy, Debug)]
pub struct Transfers {
    /// Bytes over TCP, in each direction.
    pub bytes: u64,
    /// Whether the nodes have addresses on a second uplink.
    pub has_second_address: bool,
}

/// The client of a service, and the address it uses. `SINGLE` is served by `pod-1b`, `HAIRPIN` by `pod-1a`.
fn paths(scenario: &Scenario, has_second_address: bool) -> Result<Vec<(&Host, Entry, u8)>> {
    let cluster = &scenario.cluster;
    let (here, there) = (cluster.pod("pod-1a")?, cluster.pod("pod-2a")?);
    let (node, other) = (&cluster.node(0)?.host, &cluster.node(1)?.host);
    let client = &cluster.client;
    let mut paths = vec![
        (here, Entry::ClusterIp, SINGLE),
        (there, Entry::ClusterIp, SINGLE),
        (here, Entry::ClusterIp, HAIRPIN),
        (node, Entry::ClusterIp, SINGLE),
        (other, Entry::ClusterIp, SINGLE),
        (here, Entry::NodePort(0), SINGLE),
        (here, Entry::NodePort(1), SINGLE),
        (there, Entry::NodePort(0), SINGLE),
        (there, Entry::NodePort(1), SINGLE),
        (client, Entry::NodePort(0), SINGLE),
        (client, Entry::NodePort(0), HAIRPIN),
        (client, Entry::NodePort(1), SINGLE),
    ];
    if has_second_address {
        paths.push((client, Entry::SecondNodePort(0), SINGLE));
        paths.push((client, Entry::SecondNodePort(1), SINGLE));
    }
    Ok(paths)
}

/// On every path, in both families: a connection with many bytes, and a large datagram of each kind, there and back.
///
/// First the same without services: a network that cannot do that proves nothing.
pub fn transfers(scenario: &Scenario, what: Transfers, failures: &mut Failures) -> Result<()> {
    let cluster = &scenario.cluster;
    for (client, server) in
        [(cluster.pod("pod-2a")?, cluster.pod("pod-1b")?), (&cluster.client, &cluster.node(0)?.host)]
    {
        for to in [IpAddr::from(server.v4), server.v6.into()] {
            let path =
                format!("{} -> {} without a service, {}", client.name, server.name, family(to.is_ipv4()));
            exchange(&path, client, (to, TARGET_PORT).into(), what.bytes, failures, |reply| {
                reply.answer.as_ref().with_context(|| format!("{:?}", reply.error)).map(drop)
            });
        }
    }
    for (client, entry, service) in paths(scenario, what.has_second_address)? {
        for ipv4 in FAMILIES {
            let path = format!("{} -> {entry} of {service}, {}", client.name, family(ipv4));
            let target = scenario.target(entry, service, ipv4)?;
            exchange(&path, client, target, what.bytes, failures, |reply| {
                scenario.check(client, entry, target, reply).map(drop)
            });
        }
    }
    Ok(())
}

fn exchange(
    path: &str,
    client: &Host,
    target: SocketAddr,
    bytes: u64,
    failures: &mut Failures,
    check: impl Fn(&Reply) -> Result<()>,
) {
    failures.case(format!("{path}: {bytes} bytes over TCP"), || {
        let report = client.call(target).bulk(bytes)?;
        ensure!(report.bytes == bytes, "{report:?}");
        Ok(())
    });
    for path_mtu in [PathMtu::Want, PathMtu::Do, PathMtu::Dont] {
        failures.case(format!("{path}: a datagram, {path_mtu:?} path MTU discovery"), || {
            let call = client.call(target).size(DATAGRAM).timeout(PATIENCE);
            check(&call.datagram(path_mtu, ATTEMPTS)?)
        });
    }
}
