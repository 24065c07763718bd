//! Interfaces and addresses that the agent finds by itself: no `--uplink` but where it is the subject. Needs root.
//!
//! Set-up: two nodes with two routed pods each, no `--uplink`. Tests add a network without default route (plain or
//! VLAN), a second uplink by policy routing, a veth pair within the node, or name an uplink that is not there.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Builder, Cluster, Failures, Host, Protocol, SecondUplink, until},
    kernel_capabilities::MissingCapability,
    traffic::{
        Entry, HAIRPIN, SINGLE, Scenario, TARGET_PORT, node_port,
        single::{ENDPOINTS, answers, conclude, served},
    },
};

const SOON: Duration = Duration::from_secs(10);
const FAMILIES: [bool; 2] = [true, false];

fn builder() -> Builder {
    Cluster::builder().nodes(2)
}

/// A further network of the nodes, 192.168.97.0/24 and fd00:97::/64, with a machine in it (the router, which is .1) and no router.
/// By separate cables, or a VLAN.
fn further_network(cluster: &Cluster, with_vlan: bool) -> Result<Host> {
    let mut lines = vec![
        "link add br7 type bridge".to_owned(),
        "link set br7 up".to_owned(),
        "addr add 192.168.97.1/24 dev br7".to_owned(),
        "addr add fd00:97::1/64 dev br7 nodad".to_owned(),
    ];
    for (index, node) in cluster.nodes.iter().enumerate() {
        let (name, netns) = (&node.host.name, &node.host.netns);
        let device = if with_vlan {
            lines.push(format!("link add link to-{name} name seven-{name} type vlan id 7"));
            "eth0.7"
        } else {
            lines.push(format!("link add seven-{name} type veth peer name eth7 netns {}", netns.name()));
            "eth7"
        };
        lines.push(format!("link set seven-{name} master br7 up"));
        cluster.fabric.ip(&std::mem::take(&mut lines))?;
        let mut own = vec![format!("link set {device} up")];
        if with_vlan {
            own.insert(0, format!("link add link eth0 name {device} type vlan id 7"));
        }
        own.push(format!("addr add 192.168.97.{}/24 dev {device}", 11 + index));
        own.push(format!("addr add fd00:97::{}/64 dev {device} nodad", 11 + index));
        netns.ip(&own)?;
    }
    Ok(Host {
        name: "neighbour".to_owned(),
        netns: cluster.fabric.clone(),
        v4: "192.168.97.1".parse()?,
        v6: "fd00:97::1".parse()?,
        ..cluster.client.clone()
    })
}

/// External IPs and load balancer addresses; the endpoints are those of `SINGLE`.
fn external_addresses(cluster: &Cluster, endpoint: &str) -> Result<()> {
    let pod = cluster.pod(endpoint)?;
    let mut text = String::new();
    for (family, address, external, balanced) in [
        ("IPv4", IpAddr::from(pod.v4), "203.0.113.7", "203.0.113.8"),
        ("IPv6", pod.v6.into(), "2001:db8::7", "2001:db8::8"),
    ] {
        let name = format!("external-{}", family.to_lowercase());
        let cluster_ip = if family == "IPv4" { "10.96.0.77" } else { "fd00:10:96::77" };
        text += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  type: LoadBalancer\n  \
             clusterIP: \"{cluster_ip}\"\n  clusterIPs: [\"{cluster_ip}\"]\n  ipFamilies: [{family}]\n  externalIPs: [\"{external}\"]\n  \
             ports:\n  - {{name: t, protocol: TCP, port: 80, targetPort: {TARGET_PORT}}}\n  - {{name: u, protocol: UDP, port: 80, \
             targetPort: {TARGET_PORT}}}\nstatus: {{loadBalancer: {{ingress: [{{ip: \"{balanced}\"}}]}}}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: default\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n- {{name: t, protocol: TCP, port: \
             {TARGET_PORT}}}\n- {{name: u, protocol: UDP, port: {TARGET_PORT}}}\nendpoints:\n- addresses: [\"{address}\"]\n  \
             nodeName: node-{}\n---\n",
            pod.node.unwrap_or_default() + 1
        );
    }
    cluster.manifests.write("external.yaml", &text)
}

/// By an interface without a default route, which appears while the agents run: nodePorts at its address, external IPs, load balancer
/// addresses.
fn by_a_further_interface(with_vlan: bool) -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    scenario.agents = scenario.cluster.start_agents(&[])?;
    let cluster = &scenario.cluster;
    let neighbour = match further_network(cluster, with_vlan) {
        Err(error) if format!("{error:#}").contains("Unknown device type") => {
            MissingCapability::Device("vlan").note();
            return Ok(());
        }
        network => network?,
    };
    let external = ["203.0.113.7", "203.0.113.8", "2001:db8::7", "2001:db8::8"];
    for ip in external {
        let via = if ip.contains(':') { "fd00:97::11" } else { "192.168.97.11" };
        cluster.fabric.ip(&[format!("route add {ip} via {via}")])?;
    }
    let mut failures = Failures::default();
    served(&scenario, &neighbour, &["192.168.97.11", "fd00:97::11"], node_port(SINGLE), &mut failures)?;
    for endpoint in ENDPOINTS {
        external_addresses(cluster, endpoint)?;
        for ip in external {
            let to = SocketAddr::new(ip.parse()?, 80);
            for protocol in Protocol::ALL {
                failures.case(format!("neighbour -> {to}, {protocol:?}, to {endpoint}"), || {
                    answers(&neighbour, to, protocol, endpoint)
                });
            }
        }
    }
    conclude(failures, &scenario.agents)
}

#[test]
fn external_addresses_by_an_interface_without_a_default_route() -> Result<()> {
    by_a_further_interface(false)
}

#[test]
fn external_addresses_by_a_vlan_without_a_default_route() -> Result<()> {
    by_a_further_interface(true)
}

/// Bytes that an interface of a namespace has sent.
fn sent(host: &Host, interface: &str) -> Result<u64> {
    let text = host.netns.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().nth(8))
        .context("no such interface")?
        .parse()
        .context("bytes")
}

/// A pod whose address has a separate routing table, which leads to another interface than the request came by: a secondary interface of
/// a cloud's CNI. The client gets the reply from the address that it used, by the interface of that address.
#[test]
fn replies_by_another_interface() -> Result<()> {
    let builder = builder().second_uplink(SecondUplink::PolicyRouted).rp_filter(0);
    let scenario = Scenario::start(builder, "socket", &[])?;
    let cluster = &scenario.cluster;
    let node = &cluster.node(0)?.host;
    let before = sent(node, "eth1")?;
    let mut failures = Failures::default();
    for ipv4 in FAMILIES {
        for protocol in Protocol::ALL {
            let to = scenario.target(Entry::NodePort(0), HAIRPIN, ipv4)?;
            failures.case(format!("client -> {to}, {protocol:?}"), || {
                answers(&cluster.client, to, protocol, "pod-1a")
            });
        }
        failures.case(format!("in bulk, IPv4: {ipv4}"), || {
            let report = cluster.client.call(scenario.target(Entry::NodePort(0), HAIRPIN, ipv4)?);
            let report = report.bulk(5_000_000)?;
            ensure!(report.bytes == 5_000_000, "{report:?}");
            Ok(())
        });
    }
    // Where the node's own address belongs, and not where the pod's rule leads.
    failures.case("replies leave by the first interface", || {
        let bytes = sent(node, "eth1")? - before;
        ensure!(bytes < 100_000, "{bytes} bytes by the second one");
        Ok(())
    });
    conclude(failures, &scenario.agents)
}

/// A pair of interfaces within the node leads to the pods of other nodes, as `cilium_host` and `cilium_net` do. Here a bridge does what a
/// CNI does behind it with its programs.
#[test]
fn remote_pods_behind_a_pair_within_the_node() -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    let cluster = &scenario.cluster;
    cluster.fabric.ip(&["link add br8 type bridge".to_owned(), "link set br8 up".to_owned()])?;
    for (index, node) in cluster.nodes.iter().enumerate() {
        let (name, netns) = (&node.host.name, &node.host.netns);
        cluster.fabric.ip(&[
            format!("link add eight-{name} type veth peer name tunnel netns {}", netns.name()),
            format!("link set eight-{name} master br8 up"),
        ])?;
        let (own, other) = (index + 1, 2 - index);
        netns.ip(&[
            "link add cilium_host type veth peer name cilium_net".to_owned(),
            "link add between type bridge".to_owned(),
            "link set between up".to_owned(),
            "link set cilium_net master between up".to_owned(),
            "link set tunnel master between up".to_owned(),
            "link set cilium_host up".to_owned(),
            format!("addr add 10.244.{own}.1/32 dev cilium_host"),
            format!("addr add fd00:10:244:{own}::1/128 dev cilium_host nodad"),
            format!("route replace 10.244.{other}.0/24 via 10.244.{other}.1 dev cilium_host onlink"),
            format!("route del fd00:10:244:{other}::/64"),
            format!("route add fd00:10:244:{other}::/64 via fd00:10:244:{other}::1 dev cilium_host onlink"),
        ])?;
    }
    // The other end of the tunnel is a namespace here, and to the agents a pod that forwards.
    scenario.agents = scenario.cluster.start_agents(&[])?;
    let cluster = &scenario.cluster;
    let (mut failures, node) = (Failures::default(), &cluster.node(0)?.host);
    let before = sent(node, "cilium_host")?;
    let addresses = [node.v4.to_string(), node.v6.to_string()];
    served(
        &scenario,
        &cluster.client,
        &addresses.each_ref().map(String::as_str),
        node_port(SINGLE),
        &mut failures,
    )?;
    failures.case("in bulk", || {
        let report = cluster.client.call(scenario.target(Entry::NodePort(0), SINGLE, true)?);
        let report = report.bulk(5_000_000)?;
        ensure!(report.bytes == 5_000_000 && report.server == "pod-2a", "{report:?}");
        Ok(())
    });
    failures.case("by the pair", || {
        let bytes = sent(node, "cilium_host")? - before;
        ensure!(bytes > 5_000_000, "{bytes} bytes");
        Ok(())
    });
    conclude(failures, &scenario.agents)
}

/// `--uplink` with the name of a missing interface: a problem is reported, and everything else works. When it appears, it is used.
#[test]
fn an_uplink_that_is_not_there() -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    let agent = scenario.cluster.start_agent(0, &["--uplink", "eth0", "--uplink", "eth7"])?;
    scenario.agents.push(agent);
    let cluster = &scenario.cluster;
    let node = &cluster.node(0)?.host;
    let health = node.netns.get("127.0.0.1:10256", "/healthz")?;
    ensure!(
        health.status == 200 && health.body.contains("interface `eth7` does not exist (--uplink)"),
        "{health:?}"
    );
    let metrics = node.netns.get("127.0.0.1:10249", "/metrics")?.body;
    ensure!(metrics.contains("\nproxy_agent_network_problems 1\n"), "{metrics}");
    let mut failures = Failures::default();
    served(&scenario, &cluster.client, &[&node.v4.to_string()], node_port(SINGLE), &mut failures)?;
    let neighbour = further_network(cluster, false)?;
    served(&scenario, &neighbour, &["192.168.97.11"], node_port(SINGLE), &mut failures)?;
    failures.case("the problem is gone", || {
        until(SOON, "health", || {
            let is_over = !node.netns.get("127.0.0.1:10256", "/healthz")?.body.contains("eth7")
                && node
                    .netns
                    .get("127.0.0.1:10249", "/metrics")?
                    .body
                    .contains("\nproxy_agent_network_problems 0\n");
            Ok(is_over.then_some(()))
        })
    });
    conclude(failures, &scenario.agents)
}
