//! Addresses of the node and names: where nodePorts are served, the addresses after translation, local sources. Needs root.
//!
//! Set-up: two nodes with two routed pods each. What a test is about (addresses of loopback, names, leftovers of IPVS,
//! deprecated addresses) is put on the nodes before an agent starts; `--pod-datapath` is the default.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Builder, Cluster, Endpoint, Failures, Protocol, Service},
    traffic::{
        Entry, SINGLE, Scenario, TARGET_PORT, node_port,
        single::{ENDPOINTS, answers, conclude, served},
    },
};

fn builder() -> Builder {
    Cluster::builder().nodes(2)
}

/// `lo` has the addresses that BGP announces to hosts, and those of the administrator; also when the agent runs already.
#[test]
fn node_ports_at_addresses_of_loopback() -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    let node = scenario.cluster.node(0)?.host.clone();
    let add = |ip: &str| -> Result<()> {
        node.netns.ip(&[format!("addr add {ip} dev lo")])?;
        scenario.cluster.fabric.ip(&[format!("route add {ip} via {}", node.address_like(ip.parse()?))])
    };
    add("10.99.0.1")?;
    let agent = scenario.cluster.start_agent(0, &[])?;
    for ip in ["fd00:99:9::1", "10.99.0.2"] {
        add(ip)?;
    }
    let mut failures = Failures::default();
    let client = scenario.cluster.client.clone();
    let addresses = ["10.99.0.1", "10.99.0.2", "fd00:99:9::1"];
    served(&scenario, &client, &addresses, node_port(SINGLE), &mut failures)?;
    scenario.agents.push(agent);
    conclude(failures, &scenario.agents)
}

/// Whatever `--service-node-port-range` the cluster has.
#[test]
fn node_ports_of_any_range() -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    let ips = ["10.96.0.88".parse()?, "fd00:10:96::88".parse()?];
    // One of them is a port that connections to endpoints of other nodes are given as source.
    let ports = [443, 8443, 65_535];
    for port in ports {
        let service = Service::new(&format!("port-{port}"), &ips).tcp_and_udp(port, TARGET_PORT, Some(port));
        let endpoints = ENDPOINTS.map(|name| scenario.cluster.pod(name).map(Endpoint::from));
        let endpoints = endpoints.into_iter().collect::<Result<Vec<_>>>()?;
        scenario.cluster.manifests.apply(&service, &endpoints)?;
    }
    scenario.agents = scenario.cluster.start_agents(&[])?;
    let cluster = &scenario.cluster;
    let mut failures = Failures::default();
    for (client, is_inside) in [
        (&cluster.client, false),
        (cluster.pod("pod-1a")?, true),
        (&cluster.node(0)?.host, true),
        (&cluster.node(1)?.host, true),
    ] {
        for port in ports {
            let mut targets = vec![IpAddr::from(cluster.node(0)?.host.v4), cluster.node(0)?.host.v6.into()];
            if is_inside && client.name == "node-1" {
                targets.push("127.0.0.1".parse()?);
            }
            for (ip, protocol) in targets.iter().flat_map(|ip| Protocol::ALL.map(|protocol| (*ip, protocol)))
            {
                failures.case(format!("{} -> {ip}:{port}, {protocol:?}", client.name), || {
                    let mut servers = client.call((ip, port).into()).protocol(protocol).servers(40)?;
                    servers.sort();
                    servers.dedup();
                    ensure!(servers == ENDPOINTS, "{servers:?} answer");
                    Ok(())
                });
            }
        }
    }
    failures.case("many at a time, by a port of --snat-ports", || {
        let to = (cluster.node(0)?.host.v4, 8443).into();
        let report = cluster.client.call(to).many(500, 16)?;
        ensure!(report.failed == 0, "{report:?}");
        Ok(())
    });
    conclude(failures, &scenario.agents)
}

/// The API server knows nodes in lower case; an endpoint of this node is not another's.
#[test]
fn names_of_nodes_in_upper_case() -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    let cluster = &scenario.cluster;
    let pod = cluster.pod("pod-1b")?;
    cluster.manifests.write(
        "local.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: local, namespace: default}}\nspec:\n  type: NodePort\n  clusterIP: \
             10.96.0.99\n  clusterIPs: [10.96.0.99]\n  externalTrafficPolicy: Local\n  internalTrafficPolicy: Local\n  ports:\n  \
             - {{name: t, port: 80, targetPort: {TARGET_PORT}, nodePort: 30099}}\n---\napiVersion: discovery.k8s.io/v1\nkind: \
             EndpointSlice\nmetadata:\n  name: local\n  namespace: default\n  labels: {{kubernetes.io/service-name: \
             local}}\naddressType: IPv4\nports:\n- {{name: t, port: {TARGET_PORT}}}\nendpoints:\n- addresses: [{}]\n  nodeName: \
             node-1\n",
            pod.v4
        ),
    )?;
    let agent = scenario.cluster.start_agent(0, &["--node-name", " NODE-1 "])?;
    scenario.agents.push(agent);
    let cluster = &scenario.cluster;
    let reply = cluster.client.call((cluster.node(0)?.host.v4, 30099).into()).once()?;
    let answer = reply.answer.with_context(|| format!("{:?}", reply.error))?;
    ensure!(answer.server == pod.name && cluster.client.owns(answer.client.ip()), "{answer:?}");
    let inside = cluster.pod("pod-1a")?.call("10.96.0.99:80".parse()?).servers(3)?;
    ensure!(inside.iter().all(|server| *server == pod.name), "{inside:?}");
    Ok(())
}

/// The remains of kube-proxy in IPVS mode: all cluster IPs are on an interface of the node. (A bridge here: it is known by its
/// name.)
#[test]
fn addresses_left_by_ipvs() -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    let netns = &scenario.cluster.node(0)?.host.netns;
    let mut lines = vec!["link add kube-ipvs0 type bridge".to_owned()];
    let vips = [true, false].map(|ipv4| scenario.target(Entry::ClusterIp, SINGLE, ipv4));
    let vips = vips.into_iter().collect::<Result<Vec<_>>>()?;
    lines.extend(vips.iter().map(|vip| format!("addr add {} dev kube-ipvs0", vip.ip())));
    netns.ip(&lines)?;
    scenario.agents = scenario.cluster.start_agents(&[])?;
    let cluster = &scenario.cluster;
    let mut failures = Failures::default();
    for client in [cluster.pod("pod-1a")?, &cluster.node(0)?.host] {
        for vip in &vips {
            for protocol in Protocol::ALL {
                failures.case(format!("{} -> {vip}, {protocol:?}", client.name), || {
                    answers(client, *vip, protocol, "pod-1b")
                });
            }
        }
    }
    failures.case("one warning, no problem", || {
        let log = scenario.agents[0].log();
        let warnings = log.lines().filter(|line| line.contains("kube-ipvs0") && line.contains("WARN"));
        ensure!(warnings.count() == 1, "{log}");
        let health = cluster.node(0)?.host.netns.get("127.0.0.1:10256", "/healthz")?.body;
        ensure!(!health.contains("kube-ipvs0"), "{health}");
        Ok(())
    });
    conclude(failures, &scenario.agents)
}

/// The source towards an endpoint of another node is one that the kernel would choose, too.
#[test]
fn deprecated_addresses_are_no_sources() -> Result<()> {
    let mut scenario = Scenario::without_agents(builder(), "socket")?;
    let node = scenario.cluster.node(0)?.host.clone();
    // The kernel lists the newest one first.
    node.netns.ip(&["addr add fd00:99::dead/64 dev eth0 nodad preferred_lft 0".to_owned()])?;
    scenario.apply(SINGLE, &[scenario.cluster.pod("pod-2a")?])?;
    let agent = scenario.cluster.start_agent(0, &[])?;
    scenario.agents.push(agent);
    let to = scenario.target(Entry::NodePort(0), SINGLE, false)?;
    for protocol in Protocol::ALL {
        let reply = scenario.cluster.client.call(to).protocol(protocol).once()?;
        let answer = reply.answer.with_context(|| format!("{protocol:?}: {:?}", reply.error))?;
        ensure!(
            answer.client.ip() == IpAddr::from(node.v6),
            "{protocol:?}: the endpoint sees {}",
            answer.client
        );
    }
    Ok(())
}
