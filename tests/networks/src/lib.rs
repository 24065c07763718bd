//! Networks of many kinds between two nodes, one after the other under the same running agents, and the paths that
//! services take through them: `tests/tests/traffic/networks.rs` makes the table of `docs/networks.md` from it.

mod ends;
mod known;
mod laps;
mod openvswitch;
mod paths;
mod sctp;
pub mod shapes;

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::if_nameindex;

use ends::both;
pub use known::Known;
use laps::Laps;
pub use paths::Path;
pub use shapes::Shape;

use proxy_harness::{
    cluster::{
        Agent, Builder, Cluster, Endpoint, Netns, Server, Service, ServicePort, addresses as addr, until,
    },
    kernel_capabilities::MissingCapability,
};

/// The service of the pod on `node-1`, and of the one on `node-2`: last byte of the cluster IP, and the nodePort.
const LOCAL: (u8, u16) = (21, 30_091);
const REMOTE: (u8, u16) = (22, 30_092);
/// Where pods listen.
const TARGET_PORT: u16 = 8080;
/// For a network that is complete, and for agents that follow it. The processor may be an emulated one.
const SETTLED: Duration = Duration::from_secs(30);

/// Names of the families in the table.
pub const FAMILIES: [&str; 2] = ["v4", "v6"];

/// Two nodes with a pod each, a client outside, and an agent per node.
#[derive(Debug)]
pub struct Network {
    agents: Vec<Agent>,
    _servers: Vec<Server>,
    cluster: Cluster,
    /// The interfaces of the fabric and of the nodes before any shape.
    base: Vec<(Netns, BTreeSet<String>)>,
}

impl Network {
    /// Builds the cluster and starts the agents, without the names of interfaces. Without agents, shapes are only made
    /// and removed: for work on shapes.
    ///
    /// # Errors
    /// When the cluster cannot be made, or an agent does not become healthy.
    pub fn start(builder: Builder, with_agents: bool) -> Result<Self> {
        let cluster = builder.nodes(2).pods_per_node(1).build()?;
        let pods = cluster.nodes.iter().flat_map(|node| &node.pods);
        let servers = pods.map(|pod| pod.serve(TARGET_PORT)).collect::<Result<_>>()?;
        let mut network = Self { agents: Vec::new(), _servers: servers, base: Vec::new(), cluster };
        for ((number, node_port), pod) in [(LOCAL, "pod-1a"), (REMOTE, "pod-2a")] {
            let mut service =
                Service::new(pod, &cluster_ips(number)).tcp_and_udp(80, TARGET_PORT, Some(node_port));
            service.ports.push(ServicePort {
                name: "sctp".to_owned(),
                protocol: "SCTP",
                port: 80,
                target_port: TARGET_PORT,
                node_port: Some(node_port),
            });
            let endpoint = Endpoint::from(network.cluster.pod(pod)?);
            network.cluster.manifests.apply(&service, &[endpoint])?;
        }
        let base = |netns: &Netns| Ok((netns.clone(), interfaces(netns)?));
        network.base = network.namespaces().map(base).into_iter().collect::<Result<_>>()?;
        network.forget_ways()?;
        if !with_agents {
            return Ok(network);
        }
        network.agents = network.cluster.start_agents(&["--pod-datapath", "tc"])?;
        Ok(network)
    }

    /// The namespaces that shapes change.
    fn namespaces(&self) -> [&Netns; 3] {
        let [first, second] = [0, 1].map(|node| &self.cluster.nodes[node].host.netns);
        [&self.cluster.fabric, first, second]
    }

    /// Makes a shape, tries all its paths, and removes it. Prints a line for each cell of the table: `NETWORK <shape> | <path> <family> |
    /// <cell>`. A cell is `yes`, or `no` or `error` with a reason; an error is one of the network or of the test, not of the agent.
    ///
    /// # Errors
    /// When there is an error in this sense, or when something does not work that is known to.
    pub fn try_shape(&mut self, shape: &Shape, known: &Known) -> Result<()> {
        let mut laps = Laps::default();
        let result = (shape.make)(self).and_then(|()| self.forget_neighbours());
        laps.end("made");
        let is_whole = result.is_ok();
        let result = match result {
            Ok(()) => self.try_paths(shape, known, &mut laps),
            Err(error) => match missing_capability(shape, &error) {
                Some(missing_capability) => {
                    missing_capability.note();
                    Ok(())
                }
                None => {
                    let error = error.context("it cannot be made");
                    shape.cells().for_each(|cell| show(&cell, "error", &format!("{error:#}")));
                    Err(error)
                }
            },
        };
        // A network that was made in part cannot be removed completely.
        let undone = (shape.undo)(self)
            .or_else(|error| if is_whole { Err(error) } else { Ok(()) })
            .and_then(|()| self.reset())
            .context("it cannot be removed");
        laps.end("removed");
        // A receiver that is gone does not need it.
        let _ = writeln!(io::stderr(), "TOOK {} | {laps}", shape.name);
        for agent in &mut self.agents {
            ensure!(agent.is_running(), "an agent ended:\n{}", agent.log());
        }
        result.and(undone).with_context(|| format!("the network `{}`", shape.name))
    }

    fn try_paths(&self, shape: &Shape, known: &Known, laps: &mut Laps) -> Result<()> {
        let (mut worse, mut errors) = (Vec::new(), Vec::new());
        for (family, name) in FAMILIES.iter().enumerate().filter(|(family, _)| shape.families[*family]) {
            let is_ipv4 = family == 0;
            let paths = Path::ALL.into_iter().filter(|path| !shape.without.contains(path));
            let alone = self.works_without_services(shape, is_ipv4);
            laps.end(&format!("{name} without services"));
            if let Err(error) = alone {
                let reason = format!("without services: {error:#}");
                paths.for_each(|path| show(&shape.cell(path, name), "error", &reason));
                errors.push(format!("{name}, {reason}"));
                continue;
            }
            if self.agents.is_empty() {
                show(&format!("{} | without services {name}", shape.name), "yes", "");
                continue;
            }
            for path in paths {
                let cell = shape.cell(path, name);
                let result = self.try_path(shape, path, is_ipv4);
                laps.end(&format!("{path} {name}"));
                match result {
                    Ok(()) => show(&cell, "yes", ""),
                    Err(error) => {
                        let reason = format!("{error:#}");
                        show(&cell, "no", &reason);
                        if known.works(shape.name, path, name) {
                            worse.push(format!("{cell}: {reason}"));
                        }
                    }
                }
            }
        }
        ensure!(errors.is_empty(), "{}", errors.join("\n"));
        if !worse.is_empty() {
            let logs: Vec<_> = self.agents.iter().map(Agent::log).collect();
            bail!("docs/networks.md says that these work:\n{}\n{}", worse.join("\n"), logs.join("\n"));
        }
        Ok(())
    }

    /// Restores the interfaces, addresses and routes that were there before the shape.
    fn reset(&self) -> Result<()> {
        for (netns, base) in &self.base {
            for name in interfaces(netns)?.difference(base) {
                // Others may have gone with one before, or be going.
                until(SETTLED, &format!("{name} to be gone"), || {
                    let removed = netns.ip(&[format!("link del {name}")]);
                    Ok((removed.is_ok() || !interfaces(netns)?.contains(name)).then_some(()))
                })?;
            }
        }
        for node in &self.cluster.nodes {
            self.cluster.fabric.ip(&[format!("link set to-{} master br0", node.host.name)])?;
        }
        self.each(|ends| {
            let mut lines = vec![
                "link set eth0 nomaster".to_owned(),
                "link set eth0 up".to_owned(),
                format!("addr replace {}/24 dev eth0", ends.node4()),
                format!("addr replace {}/64 dev eth0 nodad", ends.node6()),
                format!("route replace default via {} dev eth0", addr::FABRIC_V4),
                format!("route replace default via {} dev eth0", addr::FABRIC_V6),
            ];
            // Routes to pods go with the address that is their source, and when the interface leaves a VRF.
            if !self.base[1].1.contains("cni0") {
                let pod = &self.cluster.nodes[ends.own].pods[0];
                lines.push("addr replace fe80::1/64 dev veth-a nodad".to_owned());
                lines.push(format!("route replace {}/32 dev veth-a scope link src {}", pod.v4, ends.node4()));
                lines.push(format!("route replace {}/128 dev veth-a src {}", pod.v6, ends.node6()));
            }
            lines
        })?;
        self.forget_ways()
    }

    /// Removes routes to pods of the other node: a next hop within their range must not seem to be behind them.
    fn forget_ways(&self) -> Result<()> {
        for ends in both() {
            for (option, pods) in [("-4", ends.pods4()), ("-6", ends.pods6())] {
                self.node(ends).ip_with(&[option], &[format!("route flush exact {pods}")])?;
            }
        }
        Ok(())
    }

    /// MAC addresses change with uplinks. Entries that a shape wrote stay.
    fn forget_neighbours(&self) -> Result<()> {
        self.namespaces().iter().try_for_each(|netns| netns.ip(&["neigh flush all".to_owned()]))
    }

    /// Direct connections between the ends of all paths.
    fn works_without_services(&self, shape: &Shape, is_ipv4: bool) -> Result<()> {
        let cluster = &self.cluster;
        let server = cluster.pod("pod-2a")?;
        let to: IpAddr = if is_ipv4 { server.v4.into() } else { server.v6.into() };
        let mut clients = vec![cluster.pod("pod-1a")?];
        if !shape.without.contains(&Path::Node) {
            clients.push(&cluster.node(0)?.host);
        }
        for client in clients {
            let call = client.call((to, TARGET_PORT).into()).timeout(paths::PATIENCE);
            until(SETTLED, &format!("{} to reach {to}", client.name), || {
                Ok(call.once()?.answer.filter(|answer| answer.server == server.name).map(drop))
            })?;
        }
        if shape.is_sctp {
            sctp::exchange(cluster.pod("pod-1a")?, (to, TARGET_PORT).into(), server, TARGET_PORT)
                .context("SCTP")?;
        }
        let node = shape.node_address(is_ipv4);
        until(SETTLED, &format!("the client to reach {node}"), || {
            Ok(cluster.client.ping(node, paths::PATIENCE)?.then_some(()))
        })
    }
}

/// Prints a cell at once, past what tests capture: a machine may take minutes, and may not get to its end.
fn show(cell: &str, verdict: &str, reason: &str) {
    let line = format!("NETWORK {cell} | {verdict} {}", reason.replace('\n', " "));
    // A receiver that is gone does not need it.
    let _ = writeln!(io::stderr(), "{}", line.trim_end());
}

fn cluster_ips(number: u8) -> [IpAddr; 2] {
    [true, false].map(|is_ipv4| proxy_harness::traffic::cluster_ip(number, is_ipv4))
}

fn interfaces(netns: &Netns) -> Result<BTreeSet<String>> {
    netns.run(|| Ok(if_nameindex()?.iter().map(|one| one.name().to_string_lossy().into_owned()).collect()))
}

/// Whether an error comes from a kernel that lacks the parts of a shape.
fn missing_capability(shape: &Shape, error: &anyhow::Error) -> Option<MissingCapability> {
    const UNKNOWN: [&str; 6] = [
        "Unknown device type",
        "Operation not supported",
        "Protocol not supported",
        "Specified qdisc kind is unknown",
        "AEAD algorithm not found",
        "EPROTONOSUPPORT",
    ];
    let text = format!("{error:#}");
    UNKNOWN.iter().any(|unknown| text.contains(unknown)).then_some(MissingCapability::Device(shape.kind))
}
