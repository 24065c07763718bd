//! Programs that something else detaches come back; `cleanup` beside a running agent. Needs root.
//!
//! Set-up: two nodes with two routed pods each, pods served by sockets, generic XDP at uplinks. Programs are detached
//! behind the agents' backs. One test reads the qdisc of a veth on one node without an agent.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::net::qdisc;
use proxy_harness::{
    cluster::{Cluster, Host, Node, detach_link, until},
    traffic::{Entry, SINGLE, Scenario, WEB},
};

const SOON: Duration = Duration::from_secs(20);
const UPLINK: &str = "eth0";

fn restored(host: &Host) -> Result<u64> {
    let text = host.netns.get("127.0.0.1:10249", "/metrics")?.body;
    let line = text.lines().find_map(|line| line.strip_prefix("proxy_agent_hooks_restored_total "));
    line.context("no such metric")?.parse().context(text.clone())
}

/// Whether the service is reached from inside and outside, by node 1.
fn is_served(scenario: &Scenario) -> Result<[bool; 2]> {
    let soon = Duration::from_millis(500);
    let ask = |from: &Host, entry, service| -> Result<bool> {
        Ok(from.call(scenario.target(entry, service, true)?).timeout(soon).once()?.answer.is_some())
    };
    let inside = ask(scenario.cluster.pod("pod-1a")?, Entry::ClusterIp, WEB)?;
    Ok([inside, ask(&scenario.cluster.client, Entry::NodePort(0), SINGLE)?])
}

/// Detaches every program of a node as something else might. Returns how many there were.
fn detach_all(node: &Node) -> Result<u64> {
    let mut count = 0;
    for pin in fs::read_dir(node.bpffs.join("links"))? {
        let pin = pin?.path();
        // Some programs detach, others remove unknown links.
        if count % 2 == 0 {
            detach_link(&pin)?
        } else {
            fs::remove_file(&pin)?
        }
        count += 1;
    }
    // Before Linux 6.6. A CNI that sets up the interface again does this.
    if tc(&node.host, &["qdisc", "del", "dev", UPLINK, "clsact"]).is_ok() {
        count += 2;
    }
    Ok(count)
}

fn tc(host: &Host, args: &[&str]) -> Result<String> {
    host.netns.feed("tc", args, "")
}

fn served(scenario: &Scenario, what: &str) -> Result<()> {
    until(SOON, what, || Ok((is_served(scenario)? == [true, true]).then_some(())))
}

/// An `ingress` qdisc in the place of clsact: no program can be attached there, `/healthz` reports why, and everything is
/// attached when it is gone.
fn taken_by_ingress(scenario: &Scenario) -> Result<()> {
    let host = &scenario.cluster.nodes[0].host;
    tc(host, &["qdisc", "replace", "dev", UPLINK, "clsact"])?;
    tc(host, &["qdisc", "del", "dev", UPLINK, "clsact"])?;
    tc(host, &["qdisc", "add", "dev", UPLINK, "ingress"])?;
    host.netns.ip(&["link add more type veth peer name still-more".to_owned()])?;
    until(SOON, "the problem to be reported", || {
        let text = host.netns.get("127.0.0.1:10256", "/healthz")?.body;
        Ok(text.contains("in the place of clsact").then_some(()))
    })?;
    let filters = tc(host, &["filter", "show", "dev", UPLINK, "ingress"])?;
    ensure!(filters.is_empty(), "{filters}");
    tc(host, &["qdisc", "del", "dev", UPLINK, "ingress"])?;
    served(scenario, "the programs to be back without the qdisc")
}

#[test]
fn programs_come_back() -> Result<()> {
    let mut scenario = Scenario::start(Cluster::builder().nodes(2), "socket", &["--xdp", "generic"])?;
    let node = &scenario.cluster.nodes[0];
    served(&scenario, "the services to be there")?;
    ensure!(restored(&node.host)? == 0);

    let count = detach_all(node)?;
    ensure!(count >= 8 + 2, "{count} programs");
    until(SOON, "the programs to be gone", || Ok((is_served(&scenario)? == [false, false]).then_some(())))?;
    // A change of the interfaces makes the agent look within 5 s; without one it takes a minute.
    node.host.netns.ip(&["link add other type veth peer name further".to_owned()])?;
    served(&scenario, "the programs to be back")?;
    let metric = restored(&node.host)?;
    ensure!(metric == count, "{metric} of {count}");
    let log = scenario.agents[0].log();
    ensure!(log.contains("uplink_ingress is not at eth0 any more"), "{log}");
    ensure!(log.contains("connect4 is not at cgroup any more"), "{log}");

    if log.contains("(clsact)") {
        taken_by_ingress(&scenario)?;
    }

    // Refused: nothing changes. What would be removed has names.
    let error = format!("{:#}", scenario.agents[0].cleanup().err().context("not refused")?);
    ensure!(error.contains("an agent runs") && error.contains("--force"), "{error}");
    let shown = scenario.agents[0].cleanup_with(&["--dry-run"])?;
    for what in
        ["would remove", "socket hook connect4", "the ingress of eth0", "map flows_v4", "only --force"]
    {
        ensure!(shown.contains(what), "{what}:\n{shown}");
    }
    ensure!(is_served(&scenario)? == [true, true]);

    // Forced: the agent notices, ends, and serves when it is started again.
    let removed = scenario.agents[0].cleanup_with(&["--force"])?;
    ensure!(removed.contains("removing"), "{removed}");
    ensure!(scenario.agents[0].wait(SOON)? == Some(1));
    scenario.agents[0].start()?;
    served(&scenario, "the services to be there again")?;

    scenario.agents[0].terminate()?;
    let removed = scenario.agents[0].cleanup()?;
    ensure!(removed.contains("the egress of eth0"), "{removed}");
    let nothing = scenario.agents[0].cleanup_with(&["--dry-run"])?;
    ensure!(nothing.contains("nothing to remove"), "{nothing}");
    ensure!(is_served(&scenario)? == [false, false]);
    Ok(())
}

/// Before Linux 6.6 programs are filters of the clsact qdisc, whose place may be taken.
#[test]
fn the_qdisc_in_the_place_of_clsact_is_known() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    let host = &cluster.node(0)?.host;
    host.netns.ip(&["link add other type veth peer name further".to_owned()])?;
    let kind = || host.netns.run(|| Ok(qdisc::at_ingress(nix::net::if_::if_nametoindex("other")?)?));
    ensure!(kind()?.is_none(), "{:?}", kind()?);
    for qdisc in ["ingress", "clsact"] {
        tc(host, &["qdisc", "add", "dev", "other", qdisc])?;
        ensure!(kind()?.as_deref() == Some(qdisc), "{qdisc}: {:?}", kind()?);
        tc(host, &["qdisc", "del", "dev", "other", qdisc])?;
        ensure!(kind()?.is_none(), "{qdisc} is gone: {:?}", kind()?);
    }
    Ok(())
}
