//! Releases with other layouts of maps take over from each other, up and down: connections live on. Needs root, and a debug build of the agent,
//! which plays such a release.
//!
//! Set-up: two nodes with two routed pods each, `--pod-datapath tc`; connections of pods and clients are open while
//! agents of the two layouts follow each other on the first node.

use std::{fs::File, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_common::layout::group::Group;
use proxy_harness::{
    cluster::{Agent, Call, Cluster, Endpoint, Host, Load, Process, Protocol, Service, agent_binary, until},
    rounds,
    traffic::{Entry, SERVICE_PORT, SINGLE, Scenario, TARGET_PORT, WEB, cluster_ip, node_port},
};

/// Enough for a verifier on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const PACE: Duration = Duration::from_millis(20);
const ARGS: [&str; 2] = ["--pod-datapath", "tc"];

/// Its only endpoint is on the other node.
const REMOTE: u8 = 41;
/// With session affinity; three endpoints.
const STICKY: u8 = 42;

/// This release.
const OWN: &str = "";
/// A release with other layouts of the agent's own maps.
const OTHER: &str = "services";

/// A cluster of two nodes, the first of which gets other releases. Pods are served by packets, nodes by sockets.
fn start() -> Result<Scenario> {
    let mut scenario = Scenario::without_agents(Cluster::builder().nodes(2), "tc")?;
    let cluster = &scenario.cluster;
    let ips = [cluster_ip(REMOTE, true), cluster_ip(REMOTE, false)];
    let remote = Service::new("remote", &ips).tcp_and_udp(SERVICE_PORT, TARGET_PORT, Some(node_port(REMOTE)));
    cluster.manifests.apply(&remote, &[Endpoint::from(cluster.pod("pod-2a")?)])?;
    cluster.manifests.write("sticky.yaml", &sticky(&scenario.backends(WEB)?))?;
    scenario.agents = cluster.start_agents(&ARGS)?;
    Ok(scenario)
}

fn sticky(endpoints: &[&Host]) -> String {
    let vip = cluster_ip(STICKY, true);
    let port = node_port(STICKY);
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: sticky, namespace: default}}\nspec:\n  type: NodePort\n  \
         clusterIP: {vip}\n  clusterIPs: [{vip}]\n  sessionAffinity: ClientIP\n  ports:\n  \
         - {{name: http, protocol: TCP, port: {SERVICE_PORT}, targetPort: {TARGET_PORT}, nodePort: {port}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: sticky-ipv4\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: sticky}}\naddressType: IPv4\n\
         ports:\n- {{name: http, protocol: TCP, port: {TARGET_PORT}}}\nendpoints:\n"
    );
    for endpoint in endpoints {
        let node = endpoint.node.map_or(0, |index| index + 1);
        text += &format!(
            "- {{addresses: [{}], nodeName: node-{node}, conditions: {{ready: true}}}}\n",
            endpoint.v4
        );
    }
    text
}

/// Connections, datagram flows and sockets that are kept, to a local and to a remote endpoint, and new ones all the time.
struct Open<'s> {
    loads: Vec<(String, Load)>,
    /// Requests, and the server that they have to keep.
    kept: Vec<(Call<'s>, String)>,
}

impl<'s> Open<'s> {
    fn start(scenario: &'s Scenario) -> Result<Self> {
        let cluster = &scenario.cluster;
        let (client, pod, node) = (&cluster.client, cluster.pod("pod-1a")?, &cluster.node(0)?.host);
        let mut loads = Vec::new();
        for (host, entry, protocols) in [
            (client, Entry::NodePort(0), &Protocol::ALL[..2]),
            (pod, Entry::ClusterIp, &Protocol::ALL[..2]),
            (node, Entry::ClusterIp, &Protocol::ALL[..]),
        ] {
            for (service, ipv4) in [(SINGLE, true), (REMOTE, false)] {
                for protocol in protocols {
                    let call = host.call(scenario.target(entry, service, ipv4)?).protocol(*protocol);
                    let what =
                        format!("{} -> {entry} of {service}, kept, IPv4 {ipv4}, {protocol:?}", host.name);
                    loads.push((what, call.every(PACE).keep_alive().load()?));
                }
            }
            let call = host.call(scenario.target(entry, WEB, true)?).every(PACE);
            loads.push((format!("{} -> {entry}, new", host.name), call.load()?));
        }
        let mut kept = Vec::new();
        for (host, entry) in [(client, Entry::NodePort(0)), (pod, Entry::ClusterIp), (node, Entry::ClusterIp)]
        {
            kept.push(host.call(scenario.target(entry, STICKY, true)?));
        }
        // A client that uses its port again continues its flow.
        for (host, entry) in [(client, Entry::NodePort(0)), (pod, Entry::ClusterIp)] {
            for port in 45_000..45_002 {
                let source = SocketAddr::new(host.v4.into(), port);
                let call = host.call(scenario.target(entry, WEB, true)?).protocol(Protocol::Udp);
                kept.push(call.bind(source));
            }
        }
        let with_server = |call: Call<'s>| Ok((call.clone(), server(&call)?));
        let open = Self { loads, kept: kept.into_iter().map(with_server).collect::<Result<_>>()? };
        open.live()?;
        Ok(open)
    }

    /// All go on, and clients that have to keep their endpoint do.
    fn live(&self) -> Result<()> {
        self.loads.iter().try_for_each(|(_, load)| load.wait_for(10))?;
        for (call, before) in &self.kept {
            let now = server(call)?;
            ensure!(now == *before, "{now} after {before}: {call:?}");
        }
        for (what, load) in &self.loads {
            let report = load.report()?;
            ensure!(report.failed == 0, "{what}: {report:?}");
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        for (what, load) in self.loads {
            let report = load.stop()?;
            ensure!(report.failed == 0 && report.ok > 50, "{what}: {report:?}");
        }
        Ok(())
    }
}

fn server(call: &Call<'_>) -> Result<String> {
    call.servers(1)?.pop().context("no reply")
}

/// Where a release pins the maps of a group.
fn directory(cluster: &Cluster, group: Group, others: &str) -> Result<PathBuf> {
    let suffix = if others.is_empty() { "" } else { "-other" };
    Ok(cluster.node(0)?.bpffs.join(format!("{}{suffix}", group.directory())))
}

/// The maps are those of this release alone.
fn is_served_by(cluster: &Cluster, others: &str) -> Result<()> {
    let stale = if others.is_empty() { OTHER } else { OWN };
    let (own, stale) =
        (directory(cluster, Group::Services, others)?, directory(cluster, Group::Services, stale)?);
    ensure!(own.exists(), "is the agent a debug build? {} is not there", own.display());
    ensure!(!stale.exists(), "{} takes memory", stale.display());
    Ok(())
}

/// Releases end, are killed, or hand over, and the next one has other layouts.
#[test]
fn connections_live_on_through_upgrades_and_downgrades() -> Result<()> {
    let mut scenario = start()?;
    let mut agent = scenario.agents.remove(0);
    let open = Open::start(&scenario)?;
    let cluster = &scenario.cluster;
    let watch = Watch::start(cluster)?;
    for round in 0..rounds(4) {
        let others = if round % 2 == 0 { OTHER } else { OWN };
        agent = replaced(cluster, agent, round, others)?;
        if round == 0 {
            watch.wait_for("or the agent has other maps now: start it again")?;
        }
        is_served_by(cluster, others).with_context(|| agent.log())?;
        open.live().with_context(|| format!("round {round}"))?;
    }
    open.end()
}

/// `monitor` of this release.
struct Watch {
    errors: tempfile::NamedTempFile,
    _process: Process,
}

impl Watch {
    fn start(cluster: &Cluster) -> Result<Self> {
        let node = cluster.node(0)?;
        let errors = tempfile::NamedTempFile::new()?;
        let mut command = node.host.command(&agent_binary()?.to_string_lossy())?;
        command.args(["monitor", "--bpffs"]).arg(&node.bpffs);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(errors.path())?);
        let watch = Self { errors, _process: Process::new(command.spawn()?) };
        watch.wait_for("watching")?;
        Ok(watch)
    }

    fn wait_for(&self, what: &str) -> Result<()> {
        let has_line = || Ok(std::fs::read_to_string(self.errors.path())?.contains(what).then_some(()));
        until(SOON, &format!("`monitor` to print {what:?}"), has_line)
    }
}

fn replaced(cluster: &Cluster, mut agent: Agent, round: usize, others: &str) -> Result<Agent> {
    if round % 4 >= 2 {
        let new = cluster.start_other_release(0, &ARGS, &format!("-{round}"), others)?;
        until(SOON, "the new release to serve", || {
            Ok(agent.log().contains("the other agent serves now").then_some(()))
        })
        .with_context(|| format!("the new one's log:\n{}", new.log()))?;
        agent.terminate()?;
        return Ok(new);
    }
    if round.is_multiple_of(4) {
        agent.kill()?
    } else {
        agent.terminate()?
    }
    agent.set_other_layouts(others);
    agent.start()?;
    Ok(agent)
}

/// A release is killed while it takes over, beside the running agent or alone; the one before comes back, or it itself.
#[test]
fn releases_that_are_killed_while_they_take_over_harm_nothing() -> Result<()> {
    let mut scenario = start()?;
    let mut agent = scenario.agents.remove(0);
    let open = Open::start(&scenario)?;
    let cluster = &scenario.cluster;
    let own = directory(cluster, Group::Services, OWN)?;
    let other = directory(cluster, Group::Services, OTHER)?;
    let is_filling = || !own.exists();
    let is_synced = || other.join("in-step").symlink_metadata().is_ok();
    let mut killed = |what: &str, is_come: &dyn Fn() -> bool, beside: bool, comes_back: &str| -> Result<()> {
        if !beside {
            agent.kill()?;
        }
        let mut new = cluster.start_other_release(0, &ARGS, "-other", OTHER)?;
        until(SOON, what, || Ok(is_come().then_some(()))).with_context(|| new.log())?;
        new.kill()?;
        if beside {
            // Without it, it ends by itself within a second.
            agent.kill()?;
        }
        open.loads.iter().try_for_each(|(_, load)| load.wait_for(5))?;
        agent.set_other_layouts(comes_back);
        agent.start()?;
        is_served_by(cluster, comes_back).with_context(|| agent.log())?;
        open.live().with_context(|| format!("killed while waiting for {what}"))
    };
    killed("its maps to be filled, beside the one that runs", &is_filling, true, OWN)?;
    killed("its maps to be synced", &is_synced, false, OWN)?;
    killed("its maps to be filled", &is_filling, false, OTHER)?;
    open.end()
}

/// Flows of another layout cannot be used. Those of long ago are not there when their release comes back.
#[test]
fn flows_of_another_layout_are_refused() -> Result<()> {
    const FLOWS: &str = "flows";
    let mut scenario = start()?;
    let mut agent = scenario.agents.remove(0);
    let cluster = &scenario.cluster;
    let target = scenario.target(Entry::NodePort(0), REMOTE, true)?;
    let (outside, node) = (cluster.client.call(target), &cluster.node(0)?.host);
    let inside = node.call(scenario.target(Entry::ClusterIp, REMOTE, true)?);
    let flows = [OWN, FLOWS].map(|others| directory(cluster, Group::Flows, others));
    let [own, other] = flows;
    let (own, other) = (own?, other?);
    for (others, there, gone) in [(FLOWS, &other, &own), (OWN, &own, &other)] {
        let by_flow = outside.clone().every(PACE).keep_alive().load()?;
        let by_sockets =
            Protocol::ALL.map(|protocol| inside.clone().protocol(protocol).every(PACE).keep_alive().load());
        let by_sockets = by_sockets.into_iter().collect::<Result<Vec<_>>>()?;
        by_flow.wait_for(10)?;
        agent.terminate()?;
        agent.set_other_layouts(others);
        agent.start()?;
        ensure!(there.exists() && !gone.exists(), "{} and {}", there.display(), gone.display());
        by_flow.wait_for(10)?;
        let report = by_flow.stop()?;
        ensure!(report.failed > 0, "the flow was of another layout: {report:?}");
        ensure!(report.failed <= 2, "new connections are served: {report:?}");
        for load in by_sockets {
            load.wait_for(10)?;
            let report = load.stop()?;
            ensure!(report.failed == 0, "{report:?}");
        }
        ensure!(outside.servers(3)?.iter().all(|server| server == "pod-2a"));
    }
    Ok(())
}
