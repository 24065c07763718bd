//! `proxy-agent migrate` on nodes that kube-proxy left, in the shapes that it gives its rules. Needs root.
//!
//! Set-up: three nodes, each with kube-proxy's rules in another form (nftables, iptables by either back-end);
//! connections are open while `migrate` removes the rules and agents take over, and back.

use std::{fs, os::unix::fs::symlink, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_bystander::{Steady, kube_proxy_at};
use proxy_harness::{
    cluster::{Agent, Cluster, Host, Process, Protocol, agent_binary, peer_binary},
    traffic::{Entry, Scenario, WEB},
};

/// For a command, beside others that keep the machine busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rules of kubelet and others beside kube-proxy's, in all tables of `iptables` and `ip6tables`.
const OF_OTHERS: &str = "\
*mangle
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
COMMIT
*nat
:KUBE-KUBELET-CANARY - [0:0]
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m comment --comment \"of a CNI\" -j CNI-HOSTPORT
-A CNI-HOSTPORT -p tcp -m tcp --dport 9999 -j RETURN
-A POSTROUTING -p tcp -m tcp --dport 9998 -j MASQUERADE
COMMIT
*filter
:KUBE-KUBELET-CANARY - [0:0]
:OTHERS - [0:0]
-A FORWARD -p tcp -m tcp --dport 9998 -j OTHERS
-A OTHERS -m comment --comment \"KUBE-SERVICES in a comment\" -j RETURN
COMMIT
";

/// kube-proxy's own names, as in the output of `iptables-save`.
const OWN: [&str; 10] = [
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-SVC-",
    "KUBE-SEP-",
    "KUBE-EXT-",
];

/// One node for each of kube-proxy's ways to write rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

const MODES: [Mode; 3] = [Mode::Nftables, Mode::IptablesNft, Mode::IptablesLegacy];

impl Mode {
    /// The programs `iptables-...-what` and `ip6tables-...-what`.
    fn iptables(self, what: &str) -> [String; 2] {
        let backend = if self == Self::IptablesLegacy { "legacy" } else { "nft" };
        ["iptables", "ip6tables"].map(|program| format!("{program}-{backend}-{what}"))
    }

    /// Puts kube-proxy's rules beside those that are there.
    fn install(self, scenario: &Scenario, node: usize) -> Result<()> {
        let netns = &scenario.cluster.node(node)?.host.netns;
        for (ipv4, restore) in [true, false].into_iter().zip(self.iptables("restore")) {
            let [nftables, iptables] = kube_proxy_at(scenario, WEB, node, ipv4)?;
            match self {
                Self::Nftables => netns.nft(&nftables)?,
                _ => netns.feed(&restore, &["--noflush"], &iptables)?,
            };
        }
        Ok(())
    }

    /// All rules of both families, without counts.
    fn rules(self, host: &Host) -> Result<Vec<String>> {
        let mut all = String::new();
        for save in self.iptables("save") {
            all += &host.netns.feed(&save, &[], "")?;
        }
        all += &host.netns.feed("nft", &["list", "tables"], "")?;
        let lines = all.lines().filter(|line| !line.starts_with('#'));
        Ok(lines.map(|line| line.split(" [").next().unwrap_or(line).trim().to_owned()).collect())
    }
}

/// Whether kube-proxy wrote a line. Another program's comment does not count.
fn is_own(line: &str) -> bool {
    let is_comment = line.contains("in a comment");
    !is_comment && (OWN.iter().any(|name| line.contains(name)) || line.ends_with(" kube-proxy"))
}

/// Runs `migrate` on a node with the capabilities that the manifests give the agent, and no others. Exit code and output.
pub(super) fn migrate(cluster: &Cluster, node: usize, args: &[&str]) -> Result<(Option<i32>, String)> {
    const CAPABILITIES: &str =
        "-all,+dac_read_search,+net_admin,+net_broadcast,+sys_admin,+sys_ptrace,+sys_resource";
    let node = cluster.node(node)?;
    let agent = agent_binary()?.display().to_string();
    let mut all = vec![format!("--bounding-set={CAPABILITIES}"), "--inh-caps=-all".to_owned(), agent];
    all.extend(["migrate".to_owned(), "--bpffs".to_owned(), node.bpffs.display().to_string()]);
    all.extend(args.iter().map(|&arg| arg.to_owned()));
    let (code, output) = cluster.try_command(node.host.command("setpriv")?, &all, PATIENCE)?;
    println!("$ proxy-agent migrate {}\n{output}", args.join(" "));
    Ok((code, output))
}

/// Something on a node that looks like kube-proxy: its name and command line.
pub(super) fn pretend_kube_proxy(host: &Host, folder: &Path) -> Result<Process> {
    let program = folder.join("kube-proxy");
    // No copy: a child that another test forks meanwhile would hold it open for writing, and the kernel runs no such file.
    if !program.exists() {
        symlink(peer_binary()?, &program)?;
    }
    let mut command = host.command(&program.display().to_string())?;
    command.args(["serve", "--name", "kube-proxy", "--listen", "127.0.0.1:10257"]);
    Ok(Process::new(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
}

/// Connections of a pod and of a client outside by each node, over the rules.
fn connections(scenario: &Scenario) -> Result<Steady> {
    let cluster = &scenario.cluster;
    let mut steady = Steady::none();
    for node in 0..MODES.len() {
        let pod = cluster.pod(&format!("pod-{}a", node + 1))?;
        for ipv4 in [true, false] {
            for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
                // Often enough to meet each of the endpoints.
                for _ in 0..3 {
                    steady.begin(pod, scenario.target(Entry::ClusterIp, WEB, ipv4)?, None, protocol)?;
                    let outside = scenario.target(Entry::NodePort(node), WEB, ipv4)?;
                    steady.begin(&cluster.client, outside, None, protocol)?;
                }
            }
        }
    }
    steady.go_on()?;
    Ok(steady)
}

/// New connections of each kind work by each node.
fn all_connect(scenario: &Scenario) -> Result<()> {
    let cluster = &scenario.cluster;
    for node in 0..MODES.len() {
        let pod = cluster.pod(&format!("pod-{}a", node + 1))?;
        for (from, entry) in [(pod, Entry::ClusterIp), (&cluster.client, Entry::NodePort(node))] {
            for ipv4 in [true, false] {
                let target = scenario.target(entry, WEB, ipv4)?;
                let report = from.call(target).many(12, 4)?;
                ensure!(report.failed == 0, "{} to {target}: {report:?}", from.name);
            }
        }
    }
    Ok(())
}

#[test]
fn from_kube_proxy_and_back() -> Result<()> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(3), "auto")?;
    let cluster = &scenario.cluster;
    let folder = tempfile::tempdir()?;
    let mut before = Vec::new();
    for (node, mode) in MODES.into_iter().enumerate() {
        let host = &cluster.node(node)?.host;
        if mode != Mode::Nftables {
            for restore in mode.iptables("restore") {
                host.netns.feed(&restore, &["--noflush"], OF_OTHERS)?;
            }
        }
        if mode == Mode::Nftables {
            // kube-proxy's table is the last of those that keep the kernel translating.
            host.netns.nft("delete table inet cni")?;
        }
        host.netns.nft("table inet others { chain output { type filter hook output priority 0; }; }")?;
        mode.install(&scenario, node)?;
        before.push(mode.rules(host)?);
    }
    let steady = connections(&scenario)?;

    // Without an agent everything is shown, and nothing removed.
    let titles = ["nftables           table ", "iptables (nft)     ", "iptables (legacy)  "];
    for (node, (mode, title)) in MODES.into_iter().zip(titles).enumerate() {
        let (code, output) = migrate(cluster, node, &[])?;
        ensure!(code == Some(0) && output.contains("NO: no agent answers"), "{output}");
        for family in ["ip", "ip6"] {
            ensure!(output.contains(&format!("{title}{family} ")), "{family}: {output}");
        }
        let (code, output) = migrate(cluster, node, &["--commit"])?;
        ensure!(code == Some(1) && output.contains("nothing was removed"), "{output}");
        ensure!(mode.rules(&cluster.node(node)?.host)? == before[node], "{mode:?}");
    }

    let mut agents = cluster.start_agents(&[])?;
    steady.go_on()?;
    for (node, mode) in MODES.into_iter().enumerate() {
        let host = &cluster.node(node)?.host;
        let mut kube_proxy = pretend_kube_proxy(host, folder.path())?;
        let (code, output) = migrate(cluster, node, &["--commit", "--force"])?;
        ensure!(code == Some(1) && output.contains("is kube-proxy"), "{output}");
        ensure!(mode.rules(host)? == before[node], "{mode:?}");
        kube_proxy.kill()?;

        let (code, output) = migrate(cluster, node, &[])?;
        ensure!(code == Some(0) && output.contains("--commit removes it"), "{output}");
        ensure!(mode.rules(host)? == before[node], "{mode:?}");
        let (code, output) = migrate(cluster, node, &["--commit"])?;
        ensure!(code == Some(0), "{output}");
        let mut left = mode.rules(host)?;
        for keeper in ["table ip proxy-agent-nat", "table ip6 proxy-agent-nat"] {
            ensure!(left.iter().any(|line| line == keeper) == (mode == Mode::Nftables), "{left:#?}");
            left.retain(|line| line != keeper);
        }
        let expected: Vec<_> = before[node].iter().filter(|line| !is_own(line)).cloned().collect();
        ensure!(expected.len() < before[node].len());
        ensure!(left == expected, "{mode:?}: {left:#?}\nexpected: {expected:#?}");
        let (code, output) = migrate(cluster, node, &["--commit"])?;
        ensure!(code == Some(0) && output.contains("nothing to remove"), "{output}");
    }
    steady.go_on()?;
    all_connect(&scenario)?;
    steady.end()?;
    ipvs(cluster)?;
    back(&scenario, &mut agents, folder.path())
}

/// The remains of the IPVS mode, as far as this kernel can have them: the interface with the addresses of Services. Any kind
/// will do.
fn ipvs(cluster: &Cluster) -> Result<()> {
    let netns = &cluster.node(0)?.host.netns;
    let made = ["dummy", "ifb"].into_iter().find(|kind| {
        netns
            .ip(&[
                format!("link add kube-ipvs0 type {kind}"),
                "addr add 10.96.0.200/32 dev kube-ipvs0".to_owned(),
            ])
            .is_ok()
    });
    if made.is_none() {
        eprintln!("neither dummy nor ifb interfaces here: kube-ipvs0 is not tried");
        return Ok(());
    }
    let (code, output) = migrate(cluster, 0, &[])?;
    ensure!(code == Some(0) && output.contains("interface kube-ipvs0 with 1 addresses"), "{output}");
    let (code, output) = migrate(cluster, 0, &["--commit"])?;
    ensure!(code == Some(0) && output.contains("removed"), "{output}");
    ensure!(netns.ip(&["link show kube-ipvs0".to_owned()]).is_err(), "it is still there");
    Ok(())
}

/// kube-proxy takes the nodes back.
fn back(scenario: &Scenario, agents: &mut [Agent], folder: &Path) -> Result<()> {
    let cluster = &scenario.cluster;
    let mut kube_proxies = Vec::new();
    for (node, mode) in MODES.into_iter().enumerate() {
        let host = &cluster.node(node)?.host;
        agents[node].terminate()?;
        let (code, output) = migrate(cluster, node, &["--back", "--commit"])?;
        ensure!(code == Some(1) && output.contains("no kube-proxy runs here"), "{output}");
        kube_proxies.push(pretend_kube_proxy(host, folder)?);
        let (code, output) = migrate(cluster, node, &["--back", "--commit"])?;
        ensure!(code == Some(1) && output.contains("has made no rules yet"), "{output}");
        mode.install(scenario, node)?;
        let (code, output) = migrate(cluster, node, &["--back"])?;
        ensure!(code == Some(0) && output.contains("would remove"), "{output}");
        ensure!(cluster.node(node)?.bpffs.join("links").exists());
        let (code, output) = migrate(cluster, node, &["--back", "--commit"])?;
        ensure!(code == Some(0) && output.contains("removing"), "{output}");
        let left = fs::read_dir(&cluster.node(node)?.bpffs).into_iter().flatten().count();
        ensure!(left == 0, "{left} directories");
        let tables = host.netns.feed("nft", &["list", "tables"], "")?;
        ensure!(!tables.contains("proxy-agent"), "{tables}");
    }
    all_connect(scenario).context("by kube-proxy's rules again")
}
