//! Pods that sockets cannot serve, beside those that they can, in the default mode. Needs root.
//!
//! Set-up: two nodes with four routed pods each, `--pod-datapath auto`: one pod has a network stack behind it (a
//! namespace behind a veth, a virtual machine by a tap device), one has the rules of a service mesh.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_harness::{
    cluster::{Cluster, Host, MeshRules, Netns, Node, Protocol, until},
    traffic::{Entry, SERVICE_PORT, SINGLE, Scenario, WEB},
};

const SOON: Duration = Duration::from_secs(10);
const FAMILIES: [bool; 2] = [true, false];

/// A cluster whose first node has a plain client, a server, and two pods to be made something else.
fn scenario() -> Result<Scenario> {
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2).pods_per_node(4), "auto")?;
    scenario.apply(WEB, &[scenario.cluster.pod("pod-1b")?])?;
    Ok(scenario)
}

/// A host that reaches others only through a pod, which masquerades its packets.
fn behind(cluster: &Cluster, pod: &Host) -> Result<Host> {
    let netns = Netns::create(&format!("{}-vpn", cluster.name()))?;
    pod.netns.ip(&[
        format!("link add vpn0 type veth peer name eth0 netns {}", netns.name()),
        "addr add 192.168.77.1/24 dev vpn0".to_owned(),
        "addr add fd00:77::1/64 dev vpn0 nodad".to_owned(),
        "link set vpn0 up".to_owned(),
    ])?;
    netns.ip(&[
        "link set lo up".to_owned(),
        "addr add 192.168.77.2/24 dev eth0".to_owned(),
        "addr add fd00:77::2/64 dev eth0 nodad".to_owned(),
        "link set eth0 up".to_owned(),
        "route add default via 192.168.77.1".to_owned(),
        "route add default via fd00:77::1".to_owned(),
    ])?;
    pod.netns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    pod.netns.nft(
        "table inet vpn {
            chain out {
                type nat hook postrouting priority srcnat;
                oifname eth0 masquerade
            }
        }",
    )?;
    Ok(Host {
        name: "vpn-client".to_owned(),
        node: None,
        netns,
        // Another machine's: the node's hooks do not see its sockets.
        cgroup: cluster.client.cgroup.clone(),
        v4: "192.168.77.2".parse()?,
        v6: "fd00:77::2".parse()?,
        ports: cluster.client.ports.clone(),
    })
}

/// A virtual machine in a pod, with the pod's addresses, behind a bridge in the pod's network namespace.
fn virtual_machine(cluster: &Cluster, pod: &Host) -> Result<Host> {
    let netns = Netns::create(&format!("{}-vm", cluster.name()))?;
    pod.netns.ip(&[
        "addr flush dev eth0".to_owned(),
        "link add br0 type bridge".to_owned(),
        format!("link add vm0 type veth peer name eth0 netns {}", netns.name()),
        "link set eth0 master br0".to_owned(),
        "link set vm0 master br0 up".to_owned(),
        "link set br0 up".to_owned(),
    ])?;
    netns.ip(&[
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("addr add {}/32 dev eth0", pod.v4),
        format!("addr add {}/128 dev eth0 nodad", pod.v6),
        "route add 169.254.1.1 dev eth0 scope link".to_owned(),
        "route add default via 169.254.1.1 dev eth0".to_owned(),
        "route add default via fe80::1 dev eth0".to_owned(),
    ])?;
    // Sockets of a guest are none of the node's.
    Ok(Host { name: "vm".to_owned(), netns, cgroup: cluster.client.cgroup.clone(), ..pod.clone() })
}

/// Checks that the mesh's proxy sees the cluster IP, and reaches an endpoint by it.
fn goes_through_mesh(scenario: &Scenario, pod: &Host) -> Result<()> {
    for ipv4 in FAMILIES {
        let to = scenario.target(Entry::ClusterIp, WEB, ipv4)?;
        let reply = pod.call(to).once()?;
        let answer = reply.answer.with_context(|| format!("{} -> {to}: {:?}", pod.name, reply.error))?;
        ensure!(answer.local == to, "{}: SO_ORIGINAL_DST is {} and not {to}", pod.name, answer.local);
        ensure!(answer.server == "mesh pod-1b", "{}: {}", pod.name, answer.server);
    }
    Ok(())
}

/// Whether a client is served, over all protocols. The endpoint sees it as `seen`.
fn is_served(scenario: &Scenario, client: &Host, seen: &Host) -> Result<()> {
    for ipv4 in FAMILIES {
        for protocol in Protocol::ALL {
            let to = scenario.target(Entry::ClusterIp, WEB, ipv4)?;
            let reply = client.call(to).protocol(protocol).once()?;
            let what = format!("{} -> {to}, {protocol:?}", client.name);
            let answer = reply.answer.with_context(|| format!("{what}: {:?}", reply.error))?;
            ensure!(answer.server == "pod-1b", "{what}: {answer:?}");
            ensure!(seen.owns(answer.client.ip()), "{what}: the endpoint sees {}", answer.client);
            ensure!(reply.peer == Some(to), "{what}: the client sees {:?}", reply.peer);
        }
    }
    Ok(())
}

/// The row of `debug pods` for the pod at an interface: its datapath, and the reason.
fn served_by(scenario: &Scenario, interface: &str) -> Result<(String, String)> {
    let text = scenario.agents[0].debug(&["pods", "-o", "json"])?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let row = rows.iter().find(|row| row["interface"] == interface);
    let row = row.with_context(|| format!("no {interface} in {text}"))?;
    let of = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
    Ok((of("served"), of("why")))
}

#[test]
fn each_pod_is_served_by_the_way_that_fits_it() -> Result<()> {
    let mut scenario = scenario()?;
    let cluster = &scenario.cluster;
    let (plain, mesh, vpn) = (cluster.pod("pod-1a")?, cluster.pod("pod-1c")?, cluster.pod("pod-1d")?);
    let _proxy = mesh.mesh_proxy()?;
    mesh.redirect(SERVICE_PORT, MeshRules::Nftables)?;
    let vpn_client = behind(cluster, vpn)?;
    scenario.agents.push(cluster.start_agent(0, &[])?);
    // From the first request on.
    goes_through_mesh(&scenario, mesh)?;
    is_served(&scenario, &vpn_client, vpn)?;
    is_served(&scenario, plain, plain)?;
    for (interface, expected, reason) in [
        ("veth-a", "sockets", "sockets can serve it"),
        ("veth-b", "sockets", "sockets can serve it"),
        ("veth-c", "packets", "redirects packets itself (nftables, table mesh, chain out)"),
        ("veth-d", "packets", "forwards packets, and has another interface (vpn0)"),
    ] {
        let (served, why) = served_by(&scenario, interface)?;
        ensure!((&*served, &*why) == (expected, reason), "{interface}: {served}, because: {why}");
    }
    let table = scenario.agents[0].debug(&["pods"])?;
    ensure!(table.starts_with("INTERFACE"), "{table}");
    Ok(())
}

/// One that is made while the agent runs, with each kind of rules; and over a restart of the agent.
#[test]
fn rules_that_come_later_are_noticed() -> Result<()> {
    for rules in [MeshRules::Nftables, MeshRules::IptablesNft, MeshRules::IptablesLegacy] {
        let mut scenario = scenario()?;
        scenario.agents.push(scenario.cluster.start_agent(0, &[])?);
        let (plain, mesh) = (scenario.cluster.pod("pod-1a")?, scenario.cluster.pod("pod-1c")?);
        is_served(&scenario, mesh, mesh)?;
        let _proxy = mesh.mesh_proxy()?;
        mesh.redirect(SERVICE_PORT, rules)?;
        // The kernel notifies of changes in nftables' rules; the agent polls iptables' own.
        let deadline = if rules == MeshRules::IptablesLegacy { Duration::from_secs(40) } else { SOON };
        let started = Instant::now();
        until(deadline, &format!("{rules:?} to be noticed"), || {
            Ok((served_by(&scenario, "veth-c")?.0 == "packets").then_some(()))
        })?;
        eprintln!("{rules:?}: noticed after {:?}", started.elapsed());
        goes_through_mesh(&scenario, mesh)?;
        is_served(&scenario, plain, plain)?;
        scenario.agents[0].kill()?;
        goes_through_mesh(&scenario, scenario.cluster.pod("pod-1c")?)?;
        scenario.agents[0].start()?;
        goes_through_mesh(&scenario, scenario.cluster.pod("pod-1c")?)?;
    }
    Ok(())
}

#[test]
fn a_virtual_machine_is_served() -> Result<()> {
    let mut scenario = scenario()?;
    scenario.agents.push(scenario.cluster.start_agent(0, &[])?);
    let cluster = &scenario.cluster;
    let (plain, pod) = (cluster.pod("pod-1a")?, cluster.pod("pod-1d")?);
    let machine = virtual_machine(cluster, pod)?;
    until(SOON, "the virtual machine to be noticed", || {
        Ok((served_by(&scenario, "veth-d")?.0 == "packets").then_some(()))
    })?;
    let (_, why) = served_by(&scenario, "veth-d")?;
    ensure!(why == "has the interface br0 (bridge)", "{why}");
    is_served(&scenario, &machine, pod)?;
    is_served(&scenario, plain, plain)
}

fn programs_at_pods(node: &Node) -> Result<usize> {
    let metrics = node.host.netns.get("127.0.0.1:10249", "/metrics")?.body;
    let is_at_pod = |line: &&str| line.starts_with("proxy_agent_hooks{") && line.contains("program=\"pod_");
    let count = |line: &str| line.rsplit(' ').next().and_then(|count| count.parse::<usize>().ok());
    Ok(metrics.lines().filter(is_at_pod).filter_map(count).sum())
}

/// A Service for some clients only needs no programs at pods: it is known from which address their sockets send.
#[test]
fn source_ranges_need_no_programs_at_pods() -> Result<()> {
    const VIP: &str = "10.96.0.60";
    let mut scenario = scenario()?;
    scenario.agents.push(scenario.cluster.start_agent(0, &[])?);
    let cluster = &scenario.cluster;
    let (allowed, server) = (cluster.pod("pod-1a")?, cluster.pod("pod-1b")?);
    cluster.manifests.write(
        "ranges.yaml",
        &format!(
            "apiVersion: v1\n\
             kind: Service\n\
             metadata: {{name: ranges, namespace: default}}\n\
             spec:\n\
             \x20 type: LoadBalancer\n\
             \x20 clusterIP: {VIP}\n\
             \x20 loadBalancerSourceRanges: [\"{}/32\"]\n\
             \x20 ports: [{{name: http, port: 80, targetPort: 8080}}]\n\
             status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.60}}]}}}}\n\
             ---\n\
             apiVersion: discovery.k8s.io/v1\n\
             kind: EndpointSlice\n\
             metadata: {{name: ranges-1, namespace: default, labels: {{kubernetes.io/service-name: ranges}}}}\n\
             addressType: IPv4\n\
             ports: [{{name: http, port: 8080}}]\n\
             endpoints: [{{addresses: [\"{}\"], nodeName: node-1, conditions: {{ready: true}}}}]\n",
            allowed.v4, server.v4
        ),
    )?;
    let to = (IpAddr::from([203, 0, 113, 60]), 80).into();
    until(SOON, "the service", || Ok(allowed.call(to).once()?.answer))?;
    for _ in 0..20 {
        let reply = allowed.call(to).once()?;
        ensure!(reply.answer.is_some(), "{reply:?}");
        let reply = cluster.pod("pod-1c")?.call(to).timeout(Duration::from_millis(300)).once()?;
        ensure!(reply.answer.is_none(), "{reply:?}");
    }
    let count = programs_at_pods(cluster.node(0)?)?;
    ensure!(count == 0, "{count} programs at pods");
    Ok(())
}

/// Many interfaces that come at once get programs soon, and meanwhile the agent answers.
#[test]
fn many_interfaces_do_not_keep_the_agent_from_its_work() -> Result<()> {
    let pairs: usize = std::env::var("PROXY_AGENT_VETHS").ok().and_then(|it| it.parse().ok()).unwrap_or(300);
    const DEADLINE: Duration = Duration::from_secs(60);
    const SILENCE: Duration = Duration::from_secs(2);
    let mut scenario = scenario()?;
    let cluster = &scenario.cluster;
    let there = Netns::create(&format!("{}-many", cluster.name()))?;
    let node = cluster.node(0)?;
    let lines = (0..pairs).map(|number| {
        format!("link add many{number} type veth peer name eth{number} netns {}", there.name())
    });
    node.host.netns.ip(&lines.collect::<Vec<_>>())?;
    let _agent = cluster.start_agent(0, &["--pod-datapath", "socket"])?;
    ensure!(programs_at_pods(node)? == 0);
    // Now all need programs.
    cluster.manifests.write(
        "sctp.yaml",
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {name: sctp, namespace: default}\n\
         spec:\n\
         \x20 clusterIP: 10.96.0.61\n\
         \x20 ports: [{name: sctp, protocol: SCTP, port: 80}]\n",
    )?;
    let (started, mut longest) = (Instant::now(), Duration::ZERO);
    until(DEADLINE, "programs at all interfaces", || {
        let asked = Instant::now();
        let alive = node.host.netns.get("127.0.0.1:10256", "/livez").context("/livez")?;
        ensure!(alive.status == 200, "{alive:?}");
        longest = longest.max(asked.elapsed());
        Ok((programs_at_pods(node)? >= 2 * pairs).then_some(()))
    })?;
    eprintln!("{pairs} interfaces: {:?}, longest answer of /livez {longest:?}", started.elapsed());
    if longest > SILENCE {
        bail!("/livez took {longest:?}");
    }
    scenario.agents.clear();
    scenario.apply(SINGLE, &[])?;
    is_served(&scenario, scenario.cluster.pod("pod-1a")?, scenario.cluster.pod("pod-1a")?)
}
