//! Services whose endpoints are where an IPsec policy of the node looks at packets. Needs root.
//!
//! The policies here block SCTP, so that the kernel must judge each packet to the prefix, and TCP and UDP must still pass.
//!
//! Set-up: two nodes with two pods each, an agent on the first node; policies of the `xfrm` tables on its way to pods
//! of the second and back. tc and generic XDP, with and without checksum offload.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_bystander::all_ok;
use proxy_harness::{
    cluster::{Agent, Builder, Cluster, Failures, Netns, Protocol, until},
    traffic::{Entry, SINGLE, Scenario},
};

/// Destinations: pods of node-2, and the client outside.
const PODS: [&str; 2] = ["src 0.0.0.0/0 dst 10.244.2.0/24", "src ::/0 dst fd00:10:244:2::/64"];
const CLIENT: [&str; 2] = ["src 0.0.0.0/0 dst 172.31.0.0/24", "src ::/0 dst fd00:31::/64"];
const ELSEWHERE: [&str; 2] = ["src 0.0.0.0/0 dst 10.77.0.0/16", "src ::/0 dst fd00:77::/64"];

fn policies(verb: &str, selectors: &[&str; 2], direction: &str, rest: &str) -> Vec<String> {
    selectors.iter().map(|selector| format!("xfrm policy {verb} {selector} {rest} dir {direction}")).collect()
}

fn block_sctp(netns: &Netns, selectors: &[&str; 2], direction: &str) -> Result<()> {
    let lines = policies("add", selectors, direction, "proto sctp");
    netns.ip(&lines.into_iter().map(|line| line + " action block").collect::<Vec<_>>())
}

/// The only endpoint of SINGLE is on node-2; counts at node-1 the packets that the stack forwards for programs.
fn scenario(builder: Builder) -> Result<Scenario> {
    let scenario = Scenario::without_agents(builder.nodes(2), "both")?;
    scenario.apply(SINGLE, &[scenario.cluster.pod("pod-2a")?])?;
    scenario.cluster.node(0)?.host.netns.nft(
        "table inet seen {
            chain forward {
                type filter hook forward priority filter + 10; policy accept;
                iifname lo oifname eth0 ip daddr 10.244.2.0/24 counter
                iifname lo oifname eth0 ip6 daddr fd00:10:244:2::/64 counter
                iifname lo oifname eth0 ip daddr 172.31.0.0/24 counter
                iifname lo oifname eth0 ip6 daddr fd00:31::/64 counter
            }
        }",
    )?;
    Ok(scenario)
}

/// How many packets the stack has forwarded from programs: to the endpoint by IPv4, by IPv6, to the client likewise.
fn by_stack(scenario: &Scenario) -> Result<Vec<u64>> {
    let netns = &scenario.cluster.node(0)?.host.netns;
    let text = netns.feed("nft", &["list", "table", "inet", "seen"], "")?;
    let mut words = text.split_whitespace();
    let mut found = Vec::new();
    while words.any(|word| word == "packets") {
        found.push(words.next().context("no number")?.parse()?);
    }
    ensure!(found.len() == 4, "{text}");
    Ok(found)
}

/// Small requests and large transfers from outside, to the endpoint on the other node.
fn serves(scenario: &Scenario, agent: &Agent) -> Result<()> {
    const BYTES: u64 = 2_000_000;
    let cluster = &scenario.cluster;
    let mut failures = Failures::default();
    for ipv4 in [true, false] {
        let to = scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            failures.case(format!("{to}, {protocol:?}"), || {
                let call = cluster.client.call(to).protocol(protocol).timeout(Duration::from_millis(1500));
                all_ok(&call.many(50, 5)?, 50)
            });
        }
        failures.case(format!("{to}, in bulk"), || {
            let report = cluster.client.call(to).bulk(BYTES)?;
            ensure!(report.bytes == BYTES && report.server == "pod-2a", "{report:?}");
            Ok(())
        });
    }
    failures.case("nothing is INVALID to conntrack", || {
        let dropped = cluster.node(0)?.invalid_packets()?;
        ensure!(dropped == 0, "{dropped} packets");
        Ok(())
    });
    let verdict = failures.verdict();
    if verdict.is_err() {
        eprintln!("{}\n{}", agent.log(), agent.debug(&["counters"]).unwrap_or_default());
    }
    verdict
}

/// With policies for the endpoint, in time with ones for the client as well, and then without any.
fn with_policies(builder: Builder, args: &[&str]) -> Result<()> {
    let scenario = scenario(builder)?;
    let netns = &scenario.cluster.node(0)?.host.netns;
    block_sctp(netns, &PODS, "out")?;
    let agent = scenario.cluster.start_agent(0, args)?;
    serves(&scenario, &agent).context("policies for the endpoint")?;
    let [to4, to6, back4, back6] = by_stack(&scenario)?[..] else { unreachable!() };
    ensure!(to4 > 200 && to6 > 200 && (back4, back6) == (0, 0), "{:?}", by_stack(&scenario)?);

    block_sctp(netns, &CLIENT, "out")?;
    until(Duration::from_secs(30), "packets to the client to go through the stack", || {
        serves(&scenario, &agent)?;
        Ok(by_stack(&scenario)?[2..].iter().all(|&count| count > 200).then_some(()))
    })?;

    let tables = || netns.feed("nft", &["list", "tables"], "");
    ensure!(tables()?.contains("inet proxy-agent"), "{}", tables()?);
    netns.nft("delete table inet proxy-agent")?;
    until(Duration::from_secs(30), "the rule that a firewall removed", || {
        Ok(tables()?.contains("inet proxy-agent").then_some(()))
    })?;

    for selectors in [&PODS, &CLIENT] {
        netns.ip(&policies("delete", selectors, "out", "proto sctp"))?;
    }
    agent.wait_for_log("any more: all packets bypass the")?;
    serves(&scenario, &agent).context("without policies")?;
    // Cached routes have expired by now.
    let before = by_stack(&scenario)?;
    serves(&scenario, &agent).context("without policies, again")?;
    ensure!(by_stack(&scenario)? == before, "{before:?}");
    ensure!(!tables()?.contains("proxy-agent"), "{}", tables()?);
    Ok(())
}

#[test]
fn what_policies_let_pass_is_served() {
    with_policies(Cluster::builder(), &["--pod-datapath", "both"]).unwrap();
}

#[test]
fn what_policies_let_pass_is_served_with_xdp() {
    with_policies(Cluster::builder().offload(false), &["--xdp", "generic"]).unwrap();
}

#[test]
fn strict_source_checks_everywhere() {
    with_policies(Cluster::builder().rp_filter(1).offload(false), &["--pod-datapath", "tc"]).unwrap();
}

/// Policies for other destinations leave services alone.
#[test]
fn policies_for_others() -> Result<()> {
    let scenario = scenario(Cluster::builder())?;
    let netns = &scenario.cluster.node(0)?.host.netns;
    block_sctp(netns, &ELSEWHERE, "out")?;
    block_sctp(netns, &ELSEWHERE, "fwd")?;
    // A policy that only allows needs nothing from the agent.
    let allowed = policies("add", &PODS, "out", "proto udp");
    netns.ip(&allowed.into_iter().map(|line| line + " action allow").collect::<Vec<_>>())?;
    let agent = scenario.cluster.start_agent(0, &[])?;
    serves(&scenario, &agent)?;
    ensure!(by_stack(&scenario)? == [0; 4], "{:?}", by_stack(&scenario)?);
    Ok(())
}

/// The kernel asks for policies of direction `fwd` as well, of IPv4 where the loopback interface is not exempt from them.
#[test]
fn forward_policies_hold() -> Result<()> {
    let scenario = scenario(Cluster::builder())?;
    let netns = &scenario.cluster.node(0)?.host.netns;
    netns.sysctl(&[("ipv4/conf/lo/disable_policy", "0")])?;
    let lines = policies("add", &PODS, "fwd", "");
    netns.ip(&lines.into_iter().map(|line| line + " action block").collect::<Vec<_>>())?;
    let agent = scenario.cluster.start_agent(0, &[])?;
    for ipv4 in [true, false] {
        let to = scenario.target(Entry::NodePort(0), SINGLE, ipv4)?;
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            let call =
                scenario.cluster.client.call(to).protocol(protocol).timeout(Duration::from_millis(700));
            let report = call.many(10, 10)?;
            ensure!(report.ok == 0, "{to}, {protocol:?}: {report:?}");
        }
    }
    netns.ip(&policies("delete", &PODS, "fwd", ""))?;
    agent.wait_for_log("any more: all packets bypass the")?;
    serves(&scenario, &agent)
}
