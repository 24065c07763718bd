//! The cluster without an agent: the connections that must work, and those that must not, before services do.
//!
//! Set-up: three nodes, pods routed or bridged, with each `rp_filter` or `bridge-nf-call`, with and without checksum
//! offload. No agent.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxy_harness::cluster::{Cluster, Failures, Host, PodNetwork, Protocol};

const PORT: u16 = 8080;

#[test]
fn routed() {
    for (rp_filter, offload) in [(1, true), (2, false)] {
        let cluster = Cluster::builder().pods(PodNetwork::Routed).rp_filter(rp_filter).offload(offload);
        check(&cluster.build().unwrap()).unwrap();
    }
}

#[test]
fn bridged() {
    for (nf_call, offload) in [(true, true), (false, false)] {
        let cluster = Cluster::builder().pods(PodNetwork::Bridged).bridge_nf_call(nf_call).offload(offload);
        check(&cluster.build().unwrap()).unwrap();
    }
}

#[test]
fn xdp_pass_on_the_far_side_of_uplinks() {
    let cluster = Cluster::builder().nodes(2).offload(false).xdp_pass(true).build().unwrap();
    check(&cluster).unwrap();
}

#[test]
fn nothing_is_left_behind() {
    let cluster = Cluster::builder().nodes(1).build().unwrap();
    let (name, group) = (cluster.name().to_owned(), cluster.nodes[0].cgroup.clone());
    let server = cluster.nodes[0].host.serve(PORT).unwrap();
    let process = format!("/proc/{}", server.0.id());
    drop(cluster);
    drop(server);
    assert!(!std::path::Path::new(&process).exists());
    assert!(!group.exists());
    let left = proxy_harness::cluster::Netns::list().unwrap();
    assert!(!left.iter().any(|netns| netns.starts_with(&format!("{name}-"))), "{left:?}");
}

/// The source that the server sees.
enum Seen<'a> {
    Client,
    Host(&'a Host),
    Nobody,
}

fn check(cluster: &Cluster) -> Result<()> {
    let hosts: Vec<_> = cluster.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host])).collect();
    let _servers: Vec<_> =
        hosts.iter().chain([&&cluster.client]).map(|host| host.serve(PORT)).collect::<Result<_>>()?;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let (pod, node, client) = (&first.pods[0], &first.host, &cluster.client);
    let cases = [
        (pod, &first.pods[1], Seen::Client),
        (pod, &second.pods[0], Seen::Client),
        (pod, pod, Seen::Client),
        (node, &second.pods[1], Seen::Client),
        (client, &first.host, Seen::Client),
        (client, &second.host, Seen::Client),
        // Pods leave the cluster with their node's address.
        (pod, client, Seen::Host(node)),
        (pod, &second.host, Seen::Host(node)),
        // External hosts have no route to pods.
        (client, pod, Seen::Nobody),
    ];
    let mut failures = Failures::default();
    for (from, to, seen) in &cases {
        for to_address in [IpAddr::from(to.v4), to.v6.into()] {
            for protocol in Protocol::ALL {
                failures.case(format!("{} -> {} {to_address} {protocol:?}", from.name, to.name), || {
                    let target = SocketAddr::new(to_address, PORT);
                    let seen = match seen {
                        Seen::Client => Some(from.address_like(to_address)),
                        Seen::Host(host) => Some(host.address_like(to_address)),
                        Seen::Nobody => None,
                    };
                    request(from, target, protocol, to, seen)
                });
            }
        }
        if !matches!(seen, Seen::Nobody) {
            failures.case(format!("{} -> {} in bulk", from.name, to.name), || {
                from.call((to.v4, PORT).into()).bulk(2_000_000)?;
                from.call((to.v6, PORT).into()).bulk(2_000_000)?;
                Ok(())
            });
        }
    }
    failures.case("IPv4 by an IPv6 socket", || {
        let call = pod.call((second.pods[0].v4, PORT).into()).v4_mapped();
        for protocol in Protocol::ALL {
            let reply = call.clone().protocol(protocol).once()?;
            ensure!(reply.answer.is_some(), "{reply:?}");
        }
        Ok(())
    });
    failures.case("a closed port refuses at once", || {
        let reply = pod.call((second.pods[0].v4, 81).into()).once()?;
        ensure!(reply.error.as_deref() == Some("ECONNREFUSED"), "{reply:?}");
        Ok(())
    });
    failures.case("nothing is INVALID to conntrack", || {
        for node in &cluster.nodes {
            let dropped = node.invalid_packets()?;
            ensure!(dropped == 0, "{dropped} packets on {}", node.host.name);
        }
        Ok(())
    });
    failures.case("a load", || {
        let load = pod.call((second.pods[0].v4, PORT).into()).load()?;
        load.wait_for(20)?;
        let report = load.stop()?;
        ensure!(report.failed == 0 && report.ok >= 20, "{report:?}");
        Ok(())
    });
    failures.verdict()
}

fn request(
    from: &Host,
    target: SocketAddr,
    protocol: Protocol,
    server: &Host,
    seen: Option<IpAddr>,
) -> Result<()> {
    let timeout = if seen.is_some() { Duration::from_secs(3) } else { Duration::from_millis(100) };
    let reply = from.call(target).protocol(protocol).timeout(timeout).once()?;
    let Some(seen) = seen else {
        ensure!(reply.error.is_some(), "answered: {reply:?}");
        return Ok(());
    };
    let answer = reply.answer.with_context(|| format!("{:?}", reply.error))?;
    ensure!(answer.server == server.name, "{} answered", answer.server);
    ensure!(answer.client.ip() == seen, "the server sees {}, not {seen}", answer.client);
    ensure!(reply.peer == Some(target), "the client sees {:?}", reply.peer);
    Ok(())
}
