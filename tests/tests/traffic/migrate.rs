//! `proxy-agent migrate` on nodes that kube-proxy left, in the shapes that it gives its rules. Needs root.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    bystander::{Steady, kube_proxy_at},
    cluster::{Agent, Cluster, Place, Process, Protocol},
    traffic::{Entry, Scenario, WEB},
};

/// For a command, beside others that keep the machine busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What kubelet and others have beside kube-proxy's rules, in all tables of `iptables`.
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
-A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE
COMMIT
*filter
:KUBE-KUBELET-CANARY - [0:0]
:OTHERS - [0:0]
-A FORWARD -s 203.0.113.0/24 -j OTHERS
-A OTHERS -m comment --comment \"KUBE-SERVICES in a comment\" -j RETURN
COMMIT
";

/// kube-proxy's own names, as they would stand in what `iptables-save` prints.
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
    fn iptables(self, what: &str) -> String {
        let backend = if self == Self::IptablesLegacy { "legacy" } else { "nft" };
        format!("iptables-{backend}-{what}")
    }

    /// Puts kube-proxy's rules beside those that are there.
    fn install(self, scenario: &Scenario, node: usize) -> Result<()> {
        let netns = &scenario.cluster.node(node)?.place.netns;
        let [nftables, iptables] = kube_proxy_at(scenario, WEB, node)?;
        match self {
            Self::Nftables => netns.nft(&nftables)?,
            _ => netns.feed(&self.iptables("restore"), &["--noflush"], &iptables)?,
        };
        Ok(())
    }

    /// All rules, without counts.
    fn rules(self, place: &Place) -> Result<Vec<String>> {
        let saved = place.netns.feed(&self.iptables("save"), &[], "")?;
        let nftables = place.netns.feed("nft", &["list", "tables"], "")?;
        let lines = saved.lines().chain(nftables.lines()).filter(|line| !line.starts_with('#'));
        Ok(lines.map(|line| line.split(" [").next().unwrap_or(line).trim().to_owned()).collect())
    }
}

/// Is a line one that kube-proxy wrote? A comment of somebody else is not.
fn is_own(line: &str) -> bool {
    let is_comment = line.contains("in a comment");
    !is_comment && (OWN.iter().any(|name| line.contains(name)) || line.ends_with(" kube-proxy"))
}

/// Runs `migrate` on a node with the capabilities that the manifests give the agent, and no others. Exit code and output.
fn migrate(cluster: &Cluster, node: usize, args: &[&str]) -> Result<(Option<i32>, String)> {
    const CAPABILITIES: &str =
        "-all,+dac_read_search,+net_admin,+net_broadcast,+sys_admin,+sys_ptrace,+sys_resource";
    let node = cluster.node(node)?;
    let agent = proxy_tests::cluster::agent_binary()?.display().to_string();
    let mut all = vec![format!("--bounding-set={CAPABILITIES}"), "--inh-caps=-all".to_owned(), agent];
    all.extend(["migrate".to_owned(), "--bpffs".to_owned(), node.bpffs.display().to_string()]);
    all.extend(args.iter().map(|&arg| arg.to_owned()));
    let (code, said) = cluster.try_command(node.place.command("setpriv")?, &all, PATIENCE)?;
    println!("$ proxy-agent migrate {}\n{said}", args.join(" "));
    Ok((code, said))
}

/// Something on a node that looks like kube-proxy: its name and command line.
fn pretend_kube_proxy(place: &Place, folder: &Path) -> Result<Process> {
    let program = folder.join("kube-proxy");
    if !program.exists() {
        let sleep = Command::new("sh").args(["-c", "command -v sleep"]).output()?;
        fs::copy(String::from_utf8(sleep.stdout)?.trim(), &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    let mut command = place.command(&program.display().to_string())?;
    Ok(Process::new(command.arg("600").stdin(Stdio::null()).spawn()?))
}

/// Connections of a pod and of a client outside by each node, over the rules.
fn connections(scenario: &Scenario) -> Result<Steady> {
    let cluster = &scenario.cluster;
    let mut steady = Steady::none();
    for node in 0..MODES.len() {
        let pod = cluster.pod(&format!("pod-{}a", node + 1))?;
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            // Often enough to meet each of the endpoints.
            for _ in 0..4 {
                steady.begin(pod, scenario.target(Entry::ClusterIp, WEB, true)?, None, protocol)?;
                let outside = scenario.target(Entry::NodePort(node), WEB, true)?;
                steady.begin(&cluster.client, outside, None, protocol)?;
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
            let report = from.call(scenario.target(entry, WEB, true)?).many(12, 4)?;
            ensure!(report.failed == 0, "{} to {entry}: {report:?}", from.name);
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
        let place = &cluster.node(node)?.place;
        if mode != Mode::Nftables {
            place.netns.feed(&mode.iptables("restore"), &["--noflush"], OF_OTHERS)?;
        }
        if mode == Mode::Nftables {
            // kube-proxy's table is the last of those that keep the kernel translating.
            place.netns.nft("delete table inet cni")?;
        }
        place.netns.nft("table inet others { chain output { type filter hook output priority 0; }; }")?;
        mode.install(&scenario, node)?;
        before.push(mode.rules(place)?);
    }
    let steady = connections(&scenario)?;

    // Without an agent everything is shown, and nothing removed.
    for (node, (mode, title)) in
        MODES.into_iter().zip(["table ip kube-proxy", "iptables (nft)", "iptables (legacy)"]).enumerate()
    {
        let (code, said) = migrate(cluster, node, &[])?;
        ensure!(code == Some(0) && said.contains(title) && said.contains("NO: no agent answers"), "{said}");
        let (code, said) = migrate(cluster, node, &["--commit"])?;
        ensure!(code == Some(1) && said.contains("nothing was removed"), "{said}");
        ensure!(mode.rules(&cluster.node(node)?.place)? == before[node], "{mode:?}");
    }

    let mut agents = cluster.start_agents(&[])?;
    steady.go_on()?;
    for (node, mode) in MODES.into_iter().enumerate() {
        let place = &cluster.node(node)?.place;
        let mut kube_proxy = pretend_kube_proxy(place, folder.path())?;
        let (code, said) = migrate(cluster, node, &["--commit", "--force"])?;
        ensure!(code == Some(1) && said.contains("is kube-proxy"), "{said}");
        ensure!(mode.rules(place)? == before[node], "{mode:?}");
        kube_proxy.kill()?;

        let (code, said) = migrate(cluster, node, &[])?;
        ensure!(code == Some(0) && said.contains("--commit removes it"), "{said}");
        ensure!(mode.rules(place)? == before[node], "{mode:?}");
        let (code, said) = migrate(cluster, node, &["--commit"])?;
        ensure!(code == Some(0), "{said}");
        let mut left = mode.rules(place)?;
        let keeper = "table ip proxy-agent-nat";
        ensure!(left.iter().any(|line| line == keeper) == (mode == Mode::Nftables), "{left:#?}");
        left.retain(|line| line != keeper);
        let expected: Vec<_> = before[node].iter().filter(|line| !is_own(line)).cloned().collect();
        ensure!(expected.len() < before[node].len());
        ensure!(left == expected, "{mode:?}: {left:#?}\nexpected: {expected:#?}");
        let (code, said) = migrate(cluster, node, &["--commit"])?;
        ensure!(code == Some(0) && said.contains("nothing to remove"), "{said}");
    }
    steady.go_on()?;
    all_connect(&scenario)?;
    steady.end()?;
    ipvs(cluster)?;
    back(&scenario, &mut agents, folder.path())
}

/// What the IPVS mode leaves, as far as this kernel can have it: the interface with the addresses of Services. Any kind will do.
fn ipvs(cluster: &Cluster) -> Result<()> {
    let netns = &cluster.node(0)?.place.netns;
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
    let (code, said) = migrate(cluster, 0, &[])?;
    ensure!(code == Some(0) && said.contains("interface kube-ipvs0 with 1 addresses"), "{said}");
    let (code, said) = migrate(cluster, 0, &["--commit"])?;
    ensure!(code == Some(0) && said.contains("removed"), "{said}");
    ensure!(netns.ip(&["link show kube-ipvs0".to_owned()]).is_err(), "it is still there");
    Ok(())
}

/// kube-proxy takes the nodes back.
fn back(scenario: &Scenario, agents: &mut [Agent], folder: &Path) -> Result<()> {
    let cluster = &scenario.cluster;
    let mut kube_proxies = Vec::new();
    for (node, mode) in MODES.into_iter().enumerate() {
        let place = &cluster.node(node)?.place;
        agents[node].terminate()?;
        let (code, said) = migrate(cluster, node, &["--back", "--commit"])?;
        ensure!(code == Some(1) && said.contains("no kube-proxy runs here"), "{said}");
        kube_proxies.push(pretend_kube_proxy(place, folder)?);
        let (code, said) = migrate(cluster, node, &["--back", "--commit"])?;
        ensure!(code == Some(1) && said.contains("has made no rules yet"), "{said}");
        mode.install(scenario, node)?;
        let (code, said) = migrate(cluster, node, &["--back"])?;
        ensure!(code == Some(0) && said.contains("would remove"), "{said}");
        ensure!(cluster.node(node)?.bpffs.join("links").exists());
        let (code, said) = migrate(cluster, node, &["--back", "--commit"])?;
        ensure!(code == Some(0) && said.contains("removing"), "{said}");
        let left = fs::read_dir(&cluster.node(node)?.bpffs).into_iter().flatten().count();
        ensure!(left == 0, "{left} directories");
        let tables = place.netns.feed("nft", &["list", "tables"], "")?;
        ensure!(!tables.contains("proxy-agent"), "{tables}");
    }
    all_connect(scenario).context("by kube-proxy's rules again")
}
