//! `proxy-agent migrate` from kube-proxy's IPVS mode, on kernels that have IPVS: `cargo xtask vm --only migrate_ipvs`. Needs root.
//!
//! Set-up: two nodes, the first with IPVS services, `kube-ipvs0` and kube-proxy's chains; connections are open while
//! `migrate` removes them and an agent takes over, and back.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_bystander::Steady;
use proxy_harness::{
    cluster::{Cluster, Host, Protocol, until},
    kernel_capabilities::MissingCapability,
    traffic::{Entry, Scenario, TARGET_PORT, WEB, node_port},
};

use super::migrate::{migrate, pretend_kube_proxy};

/// One processor serves all processes in a machine, and it may be an emulated one.
const PATIENCE: Duration = Duration::from_secs(6);
/// The shorter time-outs of [`install`] have passed then.
const ENDED: Duration = Duration::from_secs(90);

const FAMILIES: [(bool, &str); 2] = [(true, "ip"), (false, "ip6")];

/// Where the first node serves the Service.
fn servers(scenario: &Scenario, ipv4: bool) -> Result<[SocketAddr; 2]> {
    Ok([scenario.target(Entry::ClusterIp, WEB, ipv4)?, scenario.target(Entry::NodePort(0), WEB, ipv4)?])
}

/// Virtual servers, `kube-ipvs0` and chains of the first node, as kube-proxy makes them.
fn install(scenario: &Scenario) -> Result<()> {
    let netns = &scenario.cluster.node(0)?.host.netns;
    // The first one is kube-proxy's, too: without it, conntrack and so masquerade know nothing of IPVS.
    netns.sysctl(&[("ipv4/vs/conntrack", "1"), ("ipv4/vs/expire_nodest_conn", "1")])?;
    // Up, because the IPv6 addresses of an interface that is down are tentative.
    netns.ip(&["link add kube-ipvs0 type dummy".to_owned(), "link set kube-ipvs0 up".to_owned()])?;
    let mut lines = String::new();
    for (ipv4, family) in FAMILIES {
        let servers = servers(scenario, ipv4)?;
        let (length, further) = if ipv4 { (32, "") } else { (128, " nodad") };
        netns.ip(&[format!("addr add {}/{length} dev kube-ipvs0{further}", servers[0].ip())])?;
        for server in servers {
            for protocol in ["-t", "-u"] {
                lines += &format!("-A {protocol} {server} -s rr\n");
                for backend in scenario.backends(WEB)? {
                    let endpoint = SocketAddr::new(backend.address_like(server.ip()), TARGET_PORT);
                    lines += &format!("-a {protocol} {server} -r {endpoint} -m -w 1\n");
                }
            }
        }
        netns.nft(&chains(family, servers[1]))?;
    }
    netns.feed("ipvsadm", &["--restore"], &lines)?;
    // A connection that has ended is kept for minutes else; kube-proxy has flags for these two.
    netns.feed("ipvsadm", &["--set", "0", "5", "5"], "").map(drop)
}

/// The chains of the IPVS mode that select packets for masquerading, as `iptables-nft` writes them, with plain matches in the place of
/// ipsets.
fn chains(family: &str, node: SocketAddr) -> String {
    let (address, port) = (node.ip(), node_port(WEB));
    format!(
        "table {family} nat {{
            chain KUBE-MARK-MASQ {{ meta mark set meta mark or 0x4000; }}
            chain KUBE-NODE-PORT {{ meta l4proto {{ tcp, udp }} th dport {port} jump KUBE-MARK-MASQ; }}
            chain KUBE-SERVICES {{ {family} daddr {address} jump KUBE-NODE-PORT; }}
            chain KUBE-POSTROUTING {{ meta mark and 0x4000 == 0x4000 masquerade; }}
            chain PREROUTING {{ type nat hook prerouting priority -100; jump KUBE-SERVICES; }}
            chain OUTPUT {{ type nat hook output priority -100; jump KUBE-SERVICES; }}
            chain POSTROUTING {{ type nat hook postrouting priority 100; jump KUBE-POSTROUTING; }}
        }}
        table {family} filter {{
            chain KUBE-FORWARD {{ meta mark and 0x4000 == 0x4000 accept; }}
            chain KUBE-IPVS-FILTER {{ return; }}
            chain INPUT {{ type filter hook input priority 0; jump KUBE-IPVS-FILTER; }}
            chain FORWARD {{ type filter hook forward priority 0; jump KUBE-FORWARD; }}
        }}"
    )
}

/// The virtual servers of a node, as `ipvsadm` prints them.
fn ipvs(host: &Host) -> Result<String> {
    host.netns.feed("ipvsadm", &["--list", "--numeric"], "")
}

/// How many virtual servers there are.
fn count(host: &Host) -> Result<usize> {
    Ok(ipvs(host)?.lines().filter(|line| line.starts_with("TCP") || line.starts_with("UDP")).count())
}

fn chains_left(host: &Host) -> Result<Vec<String>> {
    let rules = host.netns.feed("nft", &["list", "ruleset"], "")?;
    Ok(rules.lines().filter(|line| line.contains("KUBE-")).map(str::to_owned).collect())
}

/// Connections of a pod and of a client outside by the first node.
fn connections(scenario: &Scenario) -> Result<Steady> {
    let (pod, client) = (scenario.cluster.pod("pod-1a")?, &scenario.cluster.client);
    let mut steady = Steady::none();
    for (ipv4, _) in FAMILIES {
        let [cluster_ip, node_port] = servers(scenario, ipv4)?;
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            steady.begin(pod, cluster_ip, None, protocol)?;
            steady.begin(client, node_port, None, protocol)?;
        }
    }
    steady.go_on()?;
    Ok(steady)
}

/// New connections work, to each endpoint.
fn all_connect(scenario: &Scenario) -> Result<()> {
    let (pod, client) = (scenario.cluster.pod("pod-1a")?, &scenario.cluster.client);
    for (ipv4, _) in FAMILIES {
        for (from, to) in [pod, client].into_iter().zip(servers(scenario, ipv4)?) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let report = from.call(to).protocol(protocol).timeout(PATIENCE).many(12, 2)?;
                ensure!(report.failed == 0, "{} to {to} by {protocol:?}: {report:?}", from.name);
            }
        }
    }
    Ok(())
}

#[test]
fn from_ipvs_and_back() -> Result<()> {
    if !Path::new("/proc/net/ip_vs").exists() {
        MissingCapability::Ipvs.note();
        return Ok(());
    }
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2), "auto")?;
    let cluster = &scenario.cluster;
    let folder = tempfile::tempdir()?;
    let host = &cluster.node(0)?.host;
    install(&scenario)?;
    all_connect(&scenario).context("by IPVS")?;
    let steady = connections(&scenario)?;

    let (code, output) = migrate(cluster, 0, &[])?;
    ensure!(code == Some(0) && output.contains("8 virtual servers"), "{output}");
    ensure!(!output.contains("), 0 connections"), "{output}");
    let (code, output) = migrate(cluster, 0, &["--commit"])?;
    ensure!(code == Some(1) && output.contains("nothing was removed"), "{output}");

    let mut agent = cluster.start_agent(0, &[])?;
    steady.go_on().context("beside the agent")?;
    all_connect(&scenario).context("by the agent, beside IPVS")?;
    // Chains go, and the entries for open connections stay.
    let (code, output) = migrate(cluster, 0, &["--commit"])?;
    ensure!(code == Some(0) && output.contains("connections still go through IPVS"), "{output}");
    ensure!(count(host)? == 8, "{}", ipvs(host)?);
    ensure!(chains_left(host)?.is_empty(), "{:?}", chains_left(host)?);
    steady.go_on().context("without chains")?;
    all_connect(&scenario).context("by the agent, without chains")?;
    steady.end()?;

    until(ENDED, "the last connection of IPVS to end", || {
        Ok(migrate(cluster, 0, &[])?.1.contains("), 0 connections").then_some(()))
    })?;
    let (code, output) = migrate(cluster, 0, &["--commit"])?;
    ensure!(code == Some(0) && output.contains("removed"), "{output}");
    ensure!(count(host)? == 0, "{}", ipvs(host)?);
    ensure!(host.netns.ip(&["link show kube-ipvs0".to_owned()]).is_err(), "kube-ipvs0 is still there");
    all_connect(&scenario).context("by the agent alone")?;
    let (code, output) = migrate(cluster, 0, &["--commit"])?;
    ensure!(code == Some(0) && output.contains("nothing to remove"), "{output}");

    // And back.
    agent.terminate()?;
    let _kube_proxy = pretend_kube_proxy(host, folder.path())?;
    let (code, output) = migrate(cluster, 0, &["--back", "--commit"])?;
    ensure!(code == Some(1) && output.contains("has made no rules yet"), "{output}");
    install(&scenario)?;
    let (code, output) = migrate(cluster, 0, &["--back", "--commit"])?;
    ensure!(code == Some(0) && output.contains("removing"), "{output}");
    all_connect(&scenario).context("by IPVS again")
}
