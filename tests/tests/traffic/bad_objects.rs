//! One bad object affects only itself: it is reported, and everything else is served. Needs root.
//!
//! Set-up: two nodes with two routed pods each, pods served by sockets, an agent per node. Objects are written while
//! the agents run; the second agent is started again with `--service-budget`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Endpoint, Host, Netns, Service, until},
    traffic::{Entry, SERVICE_PORT, Scenario, TARGET_PORT, WEB, cluster_ip, node_port},
};

/// Enough for an agent that is not optimised, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const BALANCER: [u8; 4] = [203, 0, 113, 60];
const RANGES: u32 = 16_500;

/// A Service with very many source ranges, that of one client being the last of them.
fn write_ranges(cluster: &Cluster, client: &Host, server: &Host, ports: u16) -> Result<()> {
    let first = u32::from(Ipv4Addr::new(1, 0, 0, 0));
    let mut ranges: Vec<String> =
        (0..RANGES).map(|number| format!("\"{}/24\"", Ipv4Addr::from(first + number * 256))).collect();
    ranges.push(format!("\"{}/32\"", client.v4));
    let list = |entry: &dyn Fn(u16) -> String| (0..ports).map(entry).collect::<Vec<_>>().join(", ");
    let service_ports = list(&|n| format!("{{name: p{n}, port: {}, targetPort: 8080}}", SERVICE_PORT + n));
    let slice_ports = list(&|n| format!("{{name: p{n}, port: 8080}}"));
    let text = format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: ranges, namespace: default}}\n\
         spec:\n\
         \x20 type: LoadBalancer\n\
         \x20 clusterIP: 10.96.0.60\n\
         \x20 loadBalancerSourceRanges: [{}]\n\
         \x20 ports: [{service_ports}]\n\
         status: {{loadBalancer: {{ingress: [{{ip: {}}}]}}}}\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata: {{name: ranges-1, namespace: default, labels: {{kubernetes.io/service-name: ranges}}}}\n\
         addressType: IPv4\n\
         ports: [{slice_ports}]\n\
         endpoints: [{{addresses: [\"{}\"], nodeName: node-1, conditions: {{ready: true}}}}]\n",
        ranges.join(", "),
        Ipv4Addr::from(BALANCER),
        server.v4
    );
    cluster.manifests.write("ranges.yaml", &text)
}

/// Whether the load balancer's address is open to this client.
fn is_let_in(client: &Host) -> Result<bool> {
    let to = SocketAddr::new(IpAddr::from(BALANCER), SERVICE_PORT);
    Ok(client.call(to).timeout(Duration::from_millis(500)).once()?.answer.is_some())
}

fn wait_for(netns: &Netns, address: &str, path: &str, wanted: &[&str]) -> Result<String> {
    let mut last = String::new();
    until(SOON, &wanted.join(", "), || {
        last = netns.get(address, path)?.body;
        Ok(wanted.iter().all(|text| last.contains(text)).then_some(()))
    })
    .with_context(|| last.clone())?;
    Ok(last)
}

#[test]
fn a_bad_object_harms_no_other() -> Result<()> {
    const METRICS: &str = "127.0.0.1:10249";
    const HEALTHZ: &str = "127.0.0.1:10256";
    let mut scenario = Scenario::start(Cluster::builder().nodes(2), "socket", &[])?;
    let cluster = &scenario.cluster;
    let (client, server) = (cluster.pod("pod-1a")?, cluster.pod("pod-1b")?);
    let netns = &cluster.node(0)?.host.netns;
    let load = cluster.client.call(scenario.target(Entry::NodePort(0), WEB, true)?).load()?;

    // As many ranges as made a node ill once are served.
    write_ranges(cluster, client, server, 1)?;
    until(SOON, "the Service with many ranges", || Ok(is_let_in(client)?.then_some(())))?;
    ensure!(!is_let_in(server)?);
    wait_for(netns, METRICS, "/metrics", &["proxy_agent_service_failures 0"])?;

    // Too many for eight ports: those beyond keep their clients out. A node port that another Service has stays with it.
    write_ranges(cluster, client, server, 8)?;
    let ips = [cluster_ip(90, true), cluster_ip(90, false)];
    let late = Service::new("late", &ips).tcp_and_udp(SERVICE_PORT, TARGET_PORT, Some(node_port(WEB)));
    cluster.manifests.apply(&late, &[Endpoint::from(client)])?;
    let reasons = [
        "proxy_agent_service_problems{reason=\"ServiceTooLarge\"} 1",
        "proxy_agent_service_problems{reason=\"MapFull\"} 0",
        "proxy_agent_service_failures 2",
    ];
    let metrics = wait_for(netns, METRICS, "/metrics", &reasons)?;
    ensure!(metrics.contains("proxy_agent_service_problems{reason=\"FrontendConflict\"} 2"), "{metrics}");
    ensure!(!is_let_in(client)? && !is_let_in(server)?, "a range beyond the bound denies all clients");
    let health = netns.get(HEALTHZ, "/healthz")?;
    ensure!(health.status == 200, "{health:?}");
    let problems = ["8309 of 16501 source ranges of port default/ranges:p0", "node port 30080 (TCP)"];
    ensure!(problems.iter().all(|text| health.body.contains(text)), "{health:?}");
    let status = netns.get(METRICS, "/status")?.body;
    ensure!(problems.iter().all(|text| status.contains(text)), "{status}");
    let log = scenario.agents[0].log();
    ensure!(problems.iter().all(|text| log.matches(text).count() == 1), "each is logged once: {log}");

    // The loser serves by its cluster IP, and by the node port when that is free.
    let vip = SocketAddr::new(cluster_ip(90, true), SERVICE_PORT);
    ensure!(client.call(vip).servers(4)?.iter().all(|name| name == "pod-1a"));
    let report = load.stop()?;
    ensure!(report.failed == 0 && report.ok > 20, "{report:?}");
    cluster.manifests.remove("web.yaml")?;
    write_ranges(cluster, client, server, 2)?;
    wait_for(netns, METRICS, "/metrics", &["proxy_agent_service_failures 0"])?;
    until(SOON, "the client to be let in again", || Ok(is_let_in(client)?.then_some(())))?;
    let at_node = scenario.target(Entry::NodePort(0), WEB, true)?;
    ensure!(cluster.client.call(at_node).servers(4)?.iter().all(|name| name == "pod-1a"));

    // A lower bound that is given.
    let second = cluster.node(1)?;
    scenario.agents[1].terminate()?;
    scenario.agents[1].set_args(cluster.agent_args(second, &["--service-budget", "ports=4"]));
    scenario.agents[1].start()?;
    write_ranges(cluster, client, server, 8)?;
    wait_for(&second.host.netns, METRICS, "/status", &["left out are 4 of 8 ports"])?;
    Ok(())
}
