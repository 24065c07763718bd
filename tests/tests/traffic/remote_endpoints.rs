//! Ways to remote endpoints, and ways back, that are no plain routes by one uplink. Needs root.
//!
//! Set-up: two nodes, an endpoint on the second. The route to its pods has a next hop of the other family or an
//! encapsulation; replies leave by a second uplink. tc with offload, generic XDP without.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_bystander::all_ok;
use proxy_harness::{
    cluster::{Agent, Builder, Cluster, Failures, Narrow, PodNetwork, Protocol, SecondUplink},
    traffic::{Entry, HAIRPIN, SINGLE, Scenario},
};

/// With XDP, checksums must be made by senders.
const MODES: [(&[&str], bool); 2] = [(&["--pod-datapath", "tc"], true), (&["--xdp", "generic"], false)];

/// Requests and large transfers from outside to a nodePort of node-1; the pod that answers is known.
fn serves(scenario: &Scenario, agent: &Agent, service: u8, server: &str, families: &[bool]) -> Result<()> {
    const BYTES: u64 = 20_000_000;
    let cluster = &scenario.cluster;
    let mut failures = Failures::default();
    for &ipv4 in families {
        let to = scenario.target(Entry::NodePort(0), service, ipv4)?;
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            failures.case(format!("{to}, {protocol:?}"), || {
                let call = cluster.client.call(to).protocol(protocol).timeout(Duration::from_millis(1500));
                all_ok(&call.many(20, 5)?, 20)
            });
        }
        failures.case(format!("{to}, in bulk"), || {
            let report = cluster.client.call(to).bulk(BYTES)?;
            ensure!(report.bytes == BYTES && report.server == server, "{report:?}");
            Ok(())
        });
    }
    let verdict = failures.verdict();
    if verdict.is_err() {
        eprintln!("{}\n{}", agent.log(), agent.debug(&["counters"]).unwrap_or_default());
    }
    verdict
}

/// The only endpoint of SINGLE is `pod-2a`.
fn remote(builder: Builder) -> Result<Scenario> {
    let scenario = Scenario::without_agents(builder.nodes(2).rp_filter(2), "both")?;
    scenario.apply(SINGLE, &[scenario.cluster.pod("pod-2a")?])?;
    Ok(scenario)
}

/// IPv4 by way of a router that has an IPv6 address only (RFC 5549).
#[test]
fn next_hop_of_the_other_family() -> Result<()> {
    for (args, offload) in MODES {
        let scenario = remote(Cluster::builder().offload(offload))?;
        let cluster = &scenario.cluster;
        let (here, there) = (cluster.node(0)?, cluster.node(1)?);
        here.host.netns.ip(&[format!("route replace 10.244.2.0/24 via inet6 {} dev eth0", there.host.v6)])?;
        let agent = cluster.start_agent(0, args)?;
        serves(&scenario, &agent, SINGLE, "pod-2a", &[true, false]).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}

/// The route has an encapsulation that the stack adds: no program can. As with any such route, the source is the address of its
/// interface, to which the other node answers in the same way.
#[test]
fn route_with_encapsulation() -> Result<()> {
    for (args, offload) in MODES {
        // Pods leave room for the outer headers, as with any CNI that encapsulates.
        let scenario = remote(Cluster::builder().narrow(Narrow::Pods).offload(offload))?;
        let cluster = &scenario.cluster;
        let (here, there) = (cluster.node(0)?, cluster.node(1)?);
        for (number, node) in [(1, here), (2, there)] {
            node.host.netns.ip(&[
                format!("link add vx0 address 02:00:00:00:07:0{number} type vxlan external dstport 4790"),
                "link set vx0 up".to_owned(),
                // Without any, even loose source checks let nothing in.
                format!("addr add 10.9.9.{number}/32 dev vx0"),
                format!("addr add fd00:9::{number}/128 dev vx0 nodad"),
            ])?;
        }
        let outer = there.host.v4;
        here.host.netns.ip(&[
            "neigh add 10.9.9.2 lladdr 02:00:00:00:07:02 dev vx0 nud permanent".to_owned(),
            "neigh add fd00:9::2 lladdr 02:00:00:00:07:02 dev vx0 nud permanent".to_owned(),
            format!("route replace 10.244.2.0/24 encap ip id 7 dst {outer} via 10.9.9.2 dev vx0 onlink"),
            format!(
                "route replace fd00:10:244:2::/64 encap ip id 7 dst {outer} via fd00:9::2 dev vx0 onlink"
            ),
        ])?;
        let outer = here.host.v4;
        there.host.netns.ip(&[
            "neigh add 10.9.9.1 lladdr 02:00:00:00:07:01 dev vx0 nud permanent".to_owned(),
            "neigh add fd00:9::1 lladdr 02:00:00:00:07:01 dev vx0 nud permanent".to_owned(),
            format!("route replace 10.9.9.1/32 encap ip id 7 dst {outer} dev vx0"),
            format!("route replace fd00:9::1/128 encap ip id 7 dst {outer} dev vx0"),
        ])?;
        let agent = cluster.start_agent(0, args)?;
        serves(&scenario, &agent, SINGLE, "pod-2a", &[true, false]).with_context(|| format!("{args:?}"))?;
        // Packets took that way, in both families.
        let seen = there.host.netns.command("ip")?.args(["-s", "-j", "link", "show", "vx0"]).output()?;
        let seen: serde_json::Value = serde_json::from_slice(&seen.stdout)?;
        let packets = &seen[0]["stats64"]["rx"]["packets"];
        ensure!(packets.as_u64() > Some(100), "{packets} packets");
    }
    Ok(())
}

/// A pod's packets leave by the second uplink, whose network drops other source addresses (BCP 38): replies from the node's address must
/// leave by the first one.
#[test]
fn replies_leave_where_their_source_address_belongs() -> Result<()> {
    for (args, offload) in MODES {
        let builder = Cluster::builder()
            .pods(PodNetwork::Routed)
            .second_uplink(SecondUplink::PolicyRouted)
            .rp_filter(2)
            .offload(offload);
        let scenario = Scenario::without_agents(builder.nodes(2), "both")?;
        let cluster = &scenario.cluster;
        let node = &cluster.node(0)?.host;
        cluster.fabric.nft(&format!(
            "table inet bcp38 {{
                chain prerouting {{
                    type filter hook prerouting priority raw; policy accept;
                    iifname br1 ip saddr {} counter drop
                    iifname br1 ip6 saddr {} counter drop
                }}
            }}",
            node.v4, node.v6
        ))?;
        let agent = cluster.start_agent(0, args)?;
        serves(&scenario, &agent, HAIRPIN, "pod-1a", &[true, false]).with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}
