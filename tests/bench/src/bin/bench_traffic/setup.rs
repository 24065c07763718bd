//! A cluster with one way to serve its services, and the clients and servers in it.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, TcpStream},
    path::Path,
    process::{ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use proxy_harness::{
    cluster::{Agent, Cluster, Host, Netns, Process, until},
    kube_proxy::{Service, iptables, nftables},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    services::{Where, manifest, node_context},
    wire::{Order, Outcome},
};

/// How services are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Variant {
    /// Not at all: clients talk to endpoints.
    Direct,
    /// The same in another cluster: shows the difference between equal clusters.
    Again,
    /// By us, pods by socket hooks.
    Sockets,
    /// By us, pods by tc programs.
    Tc,
    /// By us, nodePorts by XDP; only for packets that are forwarded, because veth devices make XDP slow for the rest.
    #[value(skip)]
    Xdp,
    /// By rules like kube-proxy's in nftables mode.
    Nftables,
    /// By rules like kube-proxy's in iptables mode.
    Iptables,
}

impl Variant {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Again => "direct, again",
            Self::Sockets => "ours, sockets",
            Self::Tc => "ours, tc",
            Self::Xdp => "ours, XDP",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// Whether clients talk to endpoints directly.
    pub(crate) fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::Again)
    }

    /// The agent's arguments.
    fn agent_args(self) -> Option<&'static [&'static str]> {
        match self {
            Self::Sockets => Some(&["--pod-datapath", "socket"]),
            Self::Tc => Some(&["--pod-datapath", "tc"]),
            Self::Xdp => Some(&["--xdp", "native"]),
            Self::Direct | Self::Again | Self::Nftables | Self::Iptables => None,
        }
    }
}

/// Where connections are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum From {
    /// A pod on the first node.
    Pod,
    /// A machine outside.
    Client,
}

/// A cluster of two nodes. Processes are declared before it, so that they end first.
pub(crate) struct Setup {
    pub(crate) variant: Variant,
    iptables: Option<&'static str>,
    agents: Vec<Agent>,
    _servers: Vec<Process>,
    pod: Follower,
    client: Follower,
    pub(crate) cluster: Cluster,
}

impl Setup {
    /// Without any services yet. Servers and loads run on this CPU.
    pub(crate) fn new(variant: Variant, cpu: usize) -> Result<Self> {
        let cluster = Cluster::builder().nodes(2).pods_per_node(2).build()?;
        let (first, second) = (cluster.node(0)?, cluster.node(1)?);
        let servers = [(Where::Local, first, 1), (Where::Remote, second, 0)];
        let servers = servers.map(|(at, node, pod)| {
            let device = ["veth-a", "veth-b"][pod];
            let (host, own) = (&node.pods[pod], node.host.v4);
            let address = |address| format!("addr add {address}/32 dev eth0");
            let route = |address| format!("route add {address}/32 dev {device} scope link src {own}");
            host.netns.ip(&at.endpoints().map(address).collect::<Vec<_>>())?;
            node.host.netns.ip(&at.endpoints().map(route).collect::<Vec<_>>())?;
            // One client makes the connections of thousands. Endpoints do not remember them for a minute, or they would
            // refuse those that come with the same port again.
            host.netns.sysctl(&[("ipv4/tcp_max_tw_buckets", "0")])?;
            serve(host, at, cpu)
        });
        let servers = servers.into_iter().collect::<Result<_>>()?;
        for host in [&first.pods[0], &cluster.client] {
            // Many ports, so that they come again late.
            host.netns.sysctl(&[("ipv4/ip_local_port_range", "1024 65535")])?;
        }
        if Path::new("/proc/sys/net/bridge").exists() {
            // A switch knows no netfilter.
            cluster.fabric.sysctl(&[("bridge/bridge-nf-call-iptables", "0")])?;
        }
        for node in [first, second] {
            // The same for conntrack's entries of them.
            node.host.netns.sysctl(&[("netfilter/nf_conntrack_tcp_timeout_time_wait", "30")])?;
        }
        if variant.is_direct() {
            let nodes = [first, second].into_iter().zip(1..);
            let routes =
                nodes.map(|(node, number)| format!("route add 10.244.{number}.0/24 via {}", node.host.v4));
            cluster.fabric.ip(&routes.collect::<Vec<_>>())?;
        }
        let load = |host| Follower::new(host, &["load", "--cpu", &cpu.to_string()]);
        let (pod, client) = (load(&first.pods[0])?, load(&cluster.client)?);
        let iptables =
            if variant == Variant::Iptables { Some(working_iptables(&first.host.netns)?) } else { None };
        Ok(Self { variant, iptables, agents: Vec::new(), _servers: servers, pod, client, cluster })
    }

    /// Which iptables made the rules, if any.
    pub(crate) fn iptables(&self) -> Option<&'static str> {
        self.iptables
    }

    /// Serves exactly these services, on both nodes.
    pub(crate) fn set_services(&mut self, services: &[Service]) -> Result<()> {
        match self.variant {
            Variant::Direct | Variant::Again => {}
            Variant::Nftables => {
                for (index, node) in self.cluster.nodes.iter().enumerate() {
                    node.host.netns.nft(&nftables(&node_context(index, node.host.v4), services))?;
                }
            }
            Variant::Iptables => {
                for (index, node) in self.cluster.nodes.iter().enumerate() {
                    let rules = iptables(&node_context(index, node.host.v4), services);
                    node.host.netns.feed(
                        &format!("{}-restore", self.iptables.context("no iptables")?),
                        &[],
                        &rules,
                    )?;
                }
            }
            Variant::Sockets | Variant::Tc | Variant::Xdp => {
                self.cluster.manifests.write("services.json", &manifest(services))?;
                if self.agents.is_empty() {
                    let args = self.variant.agent_args().context("a variant without an agent")?;
                    self.agents = self.cluster.start_agents(args)?;
                }
                let ports = services.iter().map(|service| service.ports.len()).sum();
                self.wait_for_service_ports(ports)?;
            }
        }
        Ok(())
    }

    fn wait_for_service_ports(&self, ports: usize) -> Result<()> {
        let line = format!("proxy_agent_service_ports {ports}");
        for node in &self.cluster.nodes {
            let metrics = || node.host.netns.run(|| http_get("127.0.0.1:10249", "/metrics"));
            until(Duration::from_secs(60), &format!("{ports} service ports"), || {
                Ok(metrics()?.lines().any(|other| other == line).then_some(()))
            })?;
        }
        Ok(())
    }

    /// One slice of load.
    pub(crate) fn run(&mut self, from: From, order: &Order) -> Result<Outcome> {
        let loader = match from {
            From::Pod => &mut self.pod,
            From::Client => &mut self.client,
        };
        let outcome: Outcome = loader.run(order)?;
        if let Some(error) = &outcome.error {
            bail!("{}: {order:?} after {}: {error}", self.variant.title(), outcome.done);
        }
        Ok(outcome)
    }
}

/// The kernel may lack either; where both work, the one with less work for each packet.
fn working_iptables(netns: &Netns) -> Result<&'static str> {
    let works = |program: &&str| netns.feed(program, &["--table", "nat", "--list-rules"], "").is_ok();
    let program = ["iptables-legacy", "iptables-nft"].into_iter().find(works);
    program.context("neither iptables-legacy nor iptables-nft works here; `cargo xtask setup` installs them")
}

fn serve(host: &Host, at: Where, cpu: usize) -> Result<Process> {
    start_server(
        host,
        &["serve", "--cpu", &cpu.to_string()],
        &at.endpoints().map(IpAddr::from).collect::<Vec<_>>(),
    )
}

/// Runs this program with these arguments as the server of some addresses, and waits until it listens.
pub(crate) fn start_server(host: &Host, args: &[&str], addresses: &[IpAddr]) -> Result<Process> {
    let mut command = host.command(&env::current_exe()?.to_string_lossy())?;
    command.args(args).args(addresses.iter().map(ToString::to_string));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("no output")?;
    let process = Process::new(child);
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.trim() == "ready" { Ok(process) } else { bail!("{} cannot serve", host.name) }
}

/// This program as another process, which waits for orders.
pub(crate) struct Follower {
    orders: ChildStdin,
    outcomes: BufReader<ChildStdout>,
    _process: Process,
}

impl Follower {
    /// Runs it with these arguments.
    pub(crate) fn new(host: &Host, args: &[&str]) -> Result<Self> {
        let mut command = host.command(&env::current_exe()?.to_string_lossy())?;
        command.args(args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take().context("no input")?;
        let outcomes = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { orders, outcomes, _process: Process::new(child) })
    }

    /// Gives an order and waits for its outcome.
    pub(crate) fn run<O: Serialize, R: DeserializeOwned>(&mut self, order: &O) -> Result<R> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?)?;
        let mut line = String::new();
        self.outcomes.read_line(&mut line)?;
        serde_json::from_str(&line).context("a process that follows orders ended")
    }
}

fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
