//! Endpoints that leave all EndpointSlices of a Service: those that come back in a moment, and those that do not.
//!
//! Set-up: two nodes with two routed pods each, `--pod-datapath both`; a Service whose slices are files, so that an
//! endpoint leaves one and comes in another. Loads from a pod and from outside to the node without endpoint.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Host, Load, LoadReport, Protocol, until},
    traffic::{SERVICE_PORT, Scenario, TARGET_PORT},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 9);
const NODE_PORT: u16 = 30_190;
const SOON: Duration = Duration::from_secs(10);
/// Longer than the agent waits for more changes, shorter than the settle time.
const GAP: Duration = Duration::from_millis(100);
const MOVES: usize = 5;

/// A Service `moving`, whose slices are separate files.
struct Fixture {
    scenario: Scenario,
}

/// An endpoint, and whether it terminates.
type Listed<'a> = (&'a Host, bool);

impl Fixture {
    fn start(settle_time: &str) -> Result<Self> {
        let args = ["--endpoint-settle-time", settle_time];
        let fixture = Self { scenario: Scenario::start(Cluster::builder().nodes(2), "both", &args)? };
        let mut service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: moving}}\nspec:\n  type: NodePort\n  clusterIP: {VIP}\n  ports:\n"
        );
        for protocol in ["TCP", "UDP"] {
            writeln!(
                service,
                "  - {{name: {protocol}, protocol: {protocol}, port: {SERVICE_PORT}, nodePort: {NODE_PORT}}}"
            )?;
        }
        fixture.scenario.cluster.manifests.write("moving.yaml", &service)?;
        Ok(fixture)
    }

    /// Writes one slice.
    fn slice(&self, name: &str, endpoints: &[Listed<'_>]) -> Result<()> {
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  labels: {{kubernetes.io/service-name: moving}}\n\
             addressType: IPv4\nports:\n- {{name: TCP, protocol: TCP, port: {TARGET_PORT}}}\n- {{name: UDP, protocol: UDP, port: {TARGET_PORT}}}\nendpoints:\n"
        );
        for (host, terminating) in endpoints {
            writeln!(
                text,
                "- {{addresses: [{}], conditions: {{ready: {}, serving: true, terminating: {terminating}}}}}",
                host.v4, !terminating
            )?;
        }
        self.scenario.cluster.manifests.write(&format!("{name}.yaml"), &text)
    }

    fn pod(&self, name: &str) -> Result<&Host> {
        self.scenario.cluster.pod(name)
    }

    /// Loads from a pod, and from outside to the nodePort of the node without the endpoint.
    fn loads(&self) -> Result<Vec<(String, Load)>> {
        let node = self.scenario.cluster.node(0)?.host.v4;
        let clients = [
            (self.pod("pod-1a")?, IpAddr::from(VIP), SERVICE_PORT),
            (&self.scenario.cluster.client, node.into(), NODE_PORT),
        ];
        let mut loads = Vec::new();
        for (client, ip, port) in clients {
            for (protocol, keeps) in
                [(Protocol::Tcp, false), (Protocol::ConnectedUdp, true), (Protocol::Udp, true)]
            {
                let mut call = client
                    .call(SocketAddr::new(ip, port))
                    .protocol(protocol)
                    .timeout(Duration::from_millis(500));
                if keeps {
                    call = call.keep_alive();
                }
                loads.push((format!("{} by {protocol:?}", client.name), call.load()?));
            }
        }
        Ok(loads)
    }

    fn vip(&self) -> SocketAddr {
        SocketAddr::new(VIP.into(), SERVICE_PORT)
    }

    /// Waits until new connections are served by these, and by no others.
    fn served_by(&self, expected: &[&str], within: Duration) -> Result<()> {
        let call = self.pod("pod-1a")?.call(self.vip()).timeout(Duration::from_millis(500));
        until(within, &format!("{expected:?}"), || {
            let seen = call.servers(20).unwrap_or_default();
            let all_seen = expected.iter().all(|name| seen.iter().any(|server| server == name));
            Ok((all_seen && seen.iter().all(|server| expected.contains(&server.as_str()))).then_some(()))
        })
    }

    /// Waits until new connections are refused.
    fn refused(&self, within: Duration) -> Result<()> {
        let call = self.pod("pod-1a")?.call(self.vip()).timeout(Duration::from_millis(500));
        until(within, "connections to be refused", || {
            Ok((call.once()?.error.as_deref() == Some("ECONNREFUSED")).then_some(()))
        })
    }

    /// The only endpoint goes from one slice to the other and back, each time removed first. Returns the clients' results.
    fn moves(&self) -> Result<Vec<(String, LoadReport)>> {
        let pod = self.pod("pod-2a")?;
        self.slice("a", &[(pod, false)])?;
        self.slice("b", &[])?;
        self.served_by(&["pod-2a"], SOON)?;
        let loads = self.loads()?;
        loads.iter().try_for_each(|(what, load)| load.wait_for(20).with_context(|| what.clone()))?;
        for _ in 0..MOVES {
            for (from, to) in [("a", "b"), ("b", "a")] {
                self.slice(from, &[])?;
                // The gap itself.
                sleep(GAP);
                self.slice(to, &[(pod, false)])?;
                loads.iter().try_for_each(|(what, load)| load.wait_for(5).with_context(|| what.clone()))?;
            }
        }
        // Until the last removal is settled, and longer than the agent takes to end sockets.
        sleep(Duration::from_secs(3));
        loads.into_iter().map(|(what, load)| Ok((what, load.stop()?))).collect()
    }
}

#[test]
fn an_endpoint_that_changes_its_slice_costs_nothing() -> Result<()> {
    for (what, report) in Fixture::start("1s")?.moves()? {
        ensure!(report.failed == 0 && report.ok > 100, "{what}: {report:?}");
    }
    Ok(())
}

/// The cost without a settle time.
#[test]
fn without_a_settle_time_it_costs_connections() -> Result<()> {
    let reports = Fixture::start("0s")?.moves()?;
    let failed = |part: &str| reports.iter().any(|(what, report)| what.contains(part) && report.failed > 0);
    ensure!(failed("by Tcp") && failed("pod-1a by ConnectedUdp"), "{reports:?}");
    Ok(())
}

/// New connections never wait for the settle time where another endpoint is ready; sockets do.
#[test]
fn other_endpoints_take_over_at_once() -> Result<()> {
    const LONG: Duration = Duration::from_secs(10);
    let fixture = Fixture::start("10s")?;
    let (first, second) = (fixture.pod("pod-2a")?, fixture.pod("pod-2b")?);
    fixture.slice("a", &[(first, false)])?;
    fixture.served_by(&["pod-2a"], SOON)?;
    let load = fixture
        .pod("pod-1a")?
        .call(fixture.vip())
        .protocol(Protocol::ConnectedUdp)
        .keep_alive()
        .every(Duration::from_millis(20))
        .load()?;
    load.wait_for(5)?;
    fixture.slice("a", &[(second, false)])?;
    fixture.served_by(&["pod-2b"], LONG / 2)?;
    let report = load.report()?;
    ensure!(
        report.failed == 0 && report.last_server.map(|server| server.ip()) == Some(first.v4.into()),
        "{report:?}"
    );
    until(LONG * 2, "the socket to be served by the other", || {
        let report = load.report()?;
        Ok((report.last_server.map(|server| server.ip()) == Some(second.v4.into())).then_some(()))
    })?;
    let report = load.stop()?;
    ensure!(report.failed == 1, "one error for the endpoint that it lost: {report:?}");
    Ok(())
}

/// A terminating endpoint has announced its end.
#[test]
fn the_last_endpoint_is_refused_when_it_is_settled_or_terminated() -> Result<()> {
    let fixture = Fixture::start("1s")?;
    let pod = fixture.pod("pod-2a")?;
    for round in 0..2 {
        fixture.slice("a", &[(pod, false)])?;
        fixture.served_by(&["pod-2a"], SOON).with_context(|| format!("round {round}"))?;
        fixture.scenario.cluster.manifests.remove("a.yaml")?;
        fixture.refused(SOON)?;
    }
    drop(fixture);

    const LONG: Duration = Duration::from_secs(60);
    let fixture = Fixture::start("60s")?;
    let pod = fixture.pod("pod-2a")?;
    fixture.slice("a", &[(pod, true)])?;
    fixture.served_by(&["pod-2a"], SOON)?;
    fixture.slice("a", &[])?;
    fixture.refused(LONG / 6)
}
