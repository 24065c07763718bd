//! Conversations that go on while the agent comes and goes.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, bail};

use super::{Fixture, HOST_PORTS, OUTSIDE_PORTS, Setup};
use proxy_harness::{
    cluster::{Host, Load, Protocol, until},
    traffic::{SINGLE, TARGET_PORT, WEB, node_port},
};

/// Connections and sockets that are used all the time.
#[derive(Debug)]
pub struct Steady(Vec<(String, Load)>);

/// Opens them, over TCP and UDP: pods to outside from the number of a nodePort, from one of the range for source ports and from any
/// other, the node itself to outside, outside to the node's own server and its hostPorts.
pub fn steady(fixture: &Fixture) -> Result<Steady> {
    let cluster = &fixture.scenario.cluster;
    let (client, node) = (&cluster.client, &cluster.node(0)?.host);
    let (a, b) = (cluster.pod("pod-1a")?, cluster.pod("pod-1b")?);
    let mut steady = Steady(Vec::new());
    for ipv4 in [true, false] {
        let address = |host: &Host| if ipv4 { IpAddr::from(host.v4) } else { host.v6.into() };
        let outside = SocketAddr::new(address(client), OUTSIDE_PORTS[0]);
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            steady.begin(a, outside, Some(node_port(WEB)), protocol)?;
            steady.begin(a, outside, Some(25_000), protocol)?;
            steady.begin(b, outside, Some(node_port(SINGLE)), protocol)?;
            steady.begin(b, outside, None, protocol)?;
            steady.begin(node, outside, Some(node_port(WEB) + 2), protocol)?;
            steady.begin(client, (address(node), TARGET_PORT).into(), None, protocol)?;
            steady.begin(a, (address(b), TARGET_PORT).into(), Some(node_port(WEB) + 3), protocol)?;
            if fixture.setup == Setup::HostPorts {
                for port in HOST_PORTS {
                    steady.begin(client, (address(node), port).into(), None, protocol)?;
                }
            }
        }
    }
    Ok(steady)
}

impl Steady {
    /// None yet.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Opens one and keeps it busy.
    pub fn begin(
        &mut self,
        from: &Host,
        to: SocketAddr,
        source: Option<u16>,
        protocol: Protocol,
    ) -> Result<()> {
        // A machine that is emulated stands still for seconds while programs are verified.
        let patience = Duration::from_secs(10);
        let mut call = from.call(to).protocol(protocol).keep_alive().timeout(patience);
        call = call.every(Duration::from_millis(20));
        if let Some(port) = source {
            call = call.bind((from.address_like(to.ip()), port).into());
        }
        let source = source.map_or_else(String::new, |port| format!(" from port {port}"));
        self.0.push((format!("{} -> {to}{source}, {protocol:?}", from.name), call.load()?));
        Ok(())
    }

    /// Waits until each has had some more requests. One that has failed is not waited for: its verdict is known.
    pub fn go_on(&self) -> Result<()> {
        let reports = || self.0.iter().map(|(_, load)| load.report()).collect::<Result<Vec<_>>>();
        let before = reports()?;
        until(Duration::from_secs(20), "requests of all conversations", || {
            let mut all = before.iter().zip(reports()?);
            let is_done = all.all(|(before, now)| now.failed > 0 || now.ok >= before.ok + 5);
            Ok(is_done.then_some(()))
        })
    }

    /// Ends them; names all that lost a request or their connection.
    pub fn end(self) -> Result<()> {
        let (mut lost, count) = (Vec::new(), self.0.len());
        for (what, load) in self.0 {
            let report = load.stop()?;
            if report.failed > 0 || report.ok == 0 {
                lost.push(format!(
                    "{what}: {} of {} failed, {:?}",
                    report.failed, report.sent, report.errors
                ));
            }
        }
        if !lost.is_empty() {
            bail!("{} of {count} did not live on:\n  {}", lost.len(), lost.join("\n  "));
        }
        Ok(())
    }
}
