//! `cargo xtask demo`: a cluster of three nodes on this machine, as its users see it.

mod account;
mod steps;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use proxy_harness::cluster::{self, Agent, Cluster, Process, agent_binary, peer_binary};

use crate::{
    build, setup,
    workspace::{is_root, root, target_dir},
};
use account::Account;

/// The name in the demo's namespaces, control groups and pins.
const NAME: &str = "proxy-demo";
const DB_PORT: u16 = 3306;
const WEB_TARGET_PORT: u16 = 8080;

/// Arguments of `demo`.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Leave the cluster up, and print commands to play with.
    #[arg(long)]
    keep: bool,
    /// Only take down the cluster that was left up.
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

/// `cargo xtask demo`.
pub(crate) fn main(args: &DemoArgs) -> Result<()> {
    if !is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root");
    }
    if args.down {
        return down();
    }
    setup::tests()?;
    // The same binaries as the tests use: a first demo does not wait long for them.
    build::for_tests()?;
    down()?;

    let mut account = Account::new();
    account.title("proxy-agent: services of a three-node cluster, without kube-proxy and without iptables");
    let mut demo = Demo::start(&mut account)?;
    steps::all(&mut demo, &mut account)?;
    let verdict = account.verdict();
    if args.keep {
        demo.keep()?;
    } else {
        drop(demo);
        down()?;
    }
    verdict
}

fn folder() -> PathBuf {
    target_dir().join("demo")
}

fn down() -> Result<()> {
    cluster::remove(NAME)?;
    match fs::remove_dir_all(folder()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("the demo's folder"),
        _ => Ok(()),
    }
}

/// The cluster and its processes. Processes end before the cluster is removed.
struct Demo {
    agents: Vec<Agent>,
    servers: Vec<Process>,
    cluster: Cluster,
    rules_before: Vec<String>,
}

impl Demo {
    fn start(account: &mut Account) -> Result<Self> {
        let cluster = Cluster::builder().name(NAME).folder(folder()).build()?;
        account.heading("The cluster");
        account.text(&format!(
            "client {} -- router --+-- node-1 {} -- pod-1a {}, pod-1b {}",
            cluster.client.v4,
            cluster.nodes[0].host.v4,
            cluster.nodes[0].pods[0].v4,
            cluster.nodes[0].pods[1].v4,
        ));
        for node in &cluster.nodes[1..] {
            let pods: Vec<_> = node.pods.iter().map(|pod| format!("{} {}", pod.name, pod.v4)).collect();
            let indent = " ".repeat(format!("client {} -- router --", cluster.client.v4).len());
            account.text(&format!("{indent}+-- {} {} -- {}", node.host.name, node.host.v4, pods.join(", ")));
        }
        let mut servers = Vec::new();
        for node in &cluster.nodes {
            servers.push(node.pods[0].serve(WEB_TARGET_PORT)?.0);
            servers.push(node.pods[1].serve(DB_PORT)?.0);
        }
        let rules_before = cluster.nodes.iter().map(|node| node.netfilter_rules()).collect::<Result<_>>()?;
        let mut demo = Self { agents: Vec::new(), servers, cluster, rules_before };
        for file in ["db-service.yaml", "web.yaml", "web-endpoints.yaml"] {
            demo.apply(file)?;
        }
        demo.agents = demo.cluster.start_agents(&[])?;
        let folder = demo.cluster.manifests.path().display().to_string();
        account.text(&format!("An agent runs on every node and reads {folder}:"));
        account.text("  db-service  ClusterIP  10.103.132.104:3306             pod-1b, pod-2b, pod-3b");
        account.text("  web         NodePort   10.104.27.16:80, nodePort 30016  pod-1a, pod-2a");
        Ok(demo)
    }

    /// Copies a manifest of the repository into the folder that the agents watch.
    fn apply(&self, file: &str) -> Result<()> {
        let path = root().join("xtask/demo").join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.file_name().context("a file")?.to_string_lossy().into_owned();
        self.cluster.manifests.write(&name, &text)
    }

    /// Leaves everything running and prints how to use it.
    fn keep(self) -> Result<()> {
        let peer = peer_binary()?.display().to_string();
        let agent = agent_binary()?.display().to_string();
        let (node, client) = (&self.cluster.nodes[0], &self.cluster.client);
        let pod = &node.pods[0];
        println!("\nThe cluster stays up. As root:\n");
        println!("# In a pod; the socket hooks serve what runs in the node's control group:");
        println!(
            "sh -c 'echo $$ >{}/cgroup.procs && exec nsenter --net={} \\",
            pod.cgroup.display(),
            pod.netns.path().display()
        );
        println!("  {peer} call --to 10.103.132.104:3306 --count 5'\n");
        println!("# From outside, at any node:");
        println!(
            "nsenter --net={} {peer} call --to {}:30016 --count 5\n",
            client.netns.path().display(),
            node.host.v4
        );
        println!("# What the data path of node-1 knows, and what it would do:");
        for what in ["services", "backends", "flows", "counters"] {
            println!("{agent} debug --bpffs {} {what}", node.bpffs.display());
        }
        println!(
            "{agent} debug --bpffs {} trace --from {} --to 10.103.132.104:3306\n",
            node.bpffs.display(),
            pod.v4
        );
        println!("# Change services and watch the logs:");
        println!("ls {}", self.cluster.manifests.path().display());
        println!("tail -f {}\n", folder().join("logs/node-1.log").display());
        println!("# Take it down:\ncargo xtask demo --down");
        self.agents.into_iter().for_each(Agent::detach);
        self.servers.into_iter().for_each(Process::detach);
        self.cluster.keep();
        Ok(())
    }
}
