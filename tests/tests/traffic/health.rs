//! Real agents as load balancers and monitoring see them: health check nodePorts, kube-proxy's URLs. Needs root.
//!
//! Set-up: one or two nodes with an agent each; a Service of type LoadBalancer has its endpoint on the second node.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use proxy_harness::cluster::{Cluster, until};

const SOON: Duration = Duration::from_secs(10);
const CHECK_PORT: u16 = 31_500;
const NODE_PORT: u16 = 30_500;

/// A load balancer's service under this policy, whose one endpoint is on node 1, in this state.
fn service(endpoint: IpAddr, policy: &str, conditions: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec:\n\
         \x20 type: LoadBalancer\n\
         \x20 clusterIP: 10.96.0.50\n\
         \x20 externalTrafficPolicy: {policy}\n\
         \x20 healthCheckNodePort: {CHECK_PORT}\n\
         \x20 ports: [{{name: http, port: 80, nodePort: {NODE_PORT}}}]\n\
         ---\n\
         apiVersion: discovery.k8s.io/v1\n\
         kind: EndpointSlice\n\
         metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\n\
         ports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [\"{endpoint}\"], nodeName: node-1, conditions: {{{conditions}}}}}]\n"
    )
}

/// Whether load balancers get this status and this many endpoints from the node. Status 0: no server listens.
fn expect_checks(cluster: &Cluster, node: usize, status: u16, endpoints: usize) -> Result<()> {
    let address = SocketAddr::new(cluster.node(node)?.host.v4.into(), CHECK_PORT);
    let what = format!("{status} and {endpoints} endpoints from node {}", node + 1);
    until(SOON, &what, || {
        // Any path and method.
        let answer = cluster.client.netns.ask(&address.to_string(), "POST /whatever");
        if status == 0 {
            return Ok(answer.is_err().then_some(()));
        }
        let Ok(answer) = answer else { return Ok(None) };
        let body = &answer.body;
        let is_right = answer.status == status
            && answer.head.to_lowercase().contains(&format!("x-load-balancing-endpoint-weight: {endpoints}"))
            && body.contains(&format!("\"localEndpoints\": {endpoints}"))
            && body.contains("\"namespace\": \"shop\"");
        Ok(is_right.then_some(()))
    })
}

#[test]
fn health_checks_follow_endpoints_and_policy() -> Result<()> {
    const READY: &str = "ready: true";
    const TERMINATING: &str = "ready: false, serving: true, terminating: true";
    let cluster = Cluster::builder().nodes(2).build()?;
    let _agents = cluster.start_agents(&[])?;
    let pod = cluster.pod("pod-1a")?;
    let _server = pod.serve(8080)?;
    let apply =
        |policy, conditions| cluster.manifests.write("web.yaml", &service(pod.v4.into(), policy, conditions));
    let is_served = |node: usize| -> Result<bool> {
        let target = SocketAddr::new(cluster.node(node)?.host.v4.into(), NODE_PORT);
        let reply = cluster.client.call(target).timeout(Duration::from_millis(700)).once()?;
        Ok(reply.answer.is_some())
    };

    apply("Local", READY)?;
    expect_checks(&cluster, 0, 200, 1)?;
    expect_checks(&cluster, 1, 503, 0)?;
    ensure!(is_served(0)? && !is_served(1)?, "served by the node with the endpoint only");

    // Load balancers turn away before the last connection is refused.
    apply("Local", TERMINATING)?;
    expect_checks(&cluster, 0, 503, 0)?;
    ensure!(is_served(0)?, "it still serves");

    apply("Cluster", READY)?;
    expect_checks(&cluster, 0, 0, 0)?;
    expect_checks(&cluster, 1, 0, 0)?;
    ensure!(is_served(0)? && is_served(1)?, "served by all");
    Ok(())
}

/// The requests of kube-proxy's users and of its end-to-end test.
#[test]
fn kube_proxys_urls_answer() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    let _agents = cluster.start_agents(&[])?;
    let pod = cluster.pod("pod-1a")?;
    cluster.manifests.write("web.yaml", &service(pod.v4.into(), "Cluster", "ready: true"))?;
    let node = &cluster.node(0)?.host;
    for (port, path, expected) in [
        (10256, "/healthz", "\"lastUpdated\""),
        (10256, "/healthz", "\"nodeEligible\":true"),
        (10256, "/livez", "\"healthy\":true"),
        (10249, "/healthz", "\"healthy\":true"),
        (10249, "/proxyMode", "ebpf"),
        (10249, "/configz", "\"kubeproxy.config.k8s.io\""),
        (10249, "/metrics", "kubeproxy_sync_proxy_rules_last_timestamp_seconds{"),
        (10249, "/metrics", "kubeproxy_proxy_healthz_total{code=\"200\"}"),
        (10249, "/metrics", "proxy_agent_service_ports 1"),
    ] {
        until(SOON, &format!("{path} with {expected}"), || {
            let answer = node.netns.get(&format!("127.0.0.1:{port}"), path)?;
            Ok((answer.status == 200 && answer.body.contains(expected)).then_some(()))
        })?;
    }
    Ok(())
}

/// A problem that keeps a node from serving is reported to load balancers, and others are not. The folder of manifests stands for
/// the API server: both are a source that is away.
#[test]
fn ready_is_a_node_that_serves() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    let mut agents = cluster.start_agents(&[])?;
    let agent = &mut agents[0];
    let pod = cluster.pod("pod-1a")?;
    let _server = pod.serve(8080)?;
    let node = &cluster.node(0)?.host;
    let target = SocketAddr::new(node.v4.into(), NODE_PORT);
    let is_served = || -> Result<bool> {
        Ok(cluster.client.call(target).timeout(Duration::from_millis(700)).once()?.answer.is_some())
    };
    let alive = || -> Result<()> {
        until(SOON, "/livez to show that a restart would not help", || {
            let answer = node.netns.get("127.0.0.1:10256", "/livez");
            Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
        })
    };
    cluster.manifests.write("web.yaml", &service(pod.v4.into(), "Cluster", "ready: true"))?;
    until(SOON, "the nodePort", || Ok(is_served()?.then_some(())))?;

    let status = |code: i32, expected: &[&str]| -> Result<()> {
        let (exit, page) = cluster.try_agent(cluster.node(0)?, &["status".to_owned()], SOON)?;
        eprintln!("{page}");
        ensure!(exit == Some(code) && expected.iter().all(|text| page.contains(text)), "{exit:?}: {page}");
        Ok(())
    };
    status(0, &["on node node-1", "ready, alive", "1 service ports", "1 endpoints", " missing", "names "])?;

    agent.kill()?;
    status(1, &["error: no agent answers at 127.0.0.1:10249"])?;
    let (folder, away) = (cluster.manifests.path(), cluster.manifests.path().with_extension("away"));
    fs::rename(folder, &away)?;
    let restarted = agent.start_until("healthy without its source", |status, body| {
        status == 200 && body.contains("not fully listed")
    });
    fs::rename(&away, folder)?;
    restarted?;
    ensure!(is_served()?);
    alive()?;

    // After a reboot nothing is left.
    agent.terminate()?;
    agent.cleanup()?;
    fs::rename(folder, &away)?;
    let rebooted = agent.start_until("not ready without its source", |status, body| {
        status == 503 && body.contains("not fully listed")
    });
    fs::rename(&away, folder)?;
    rebooted?;
    alive()?;
    agent.terminate()?;

    agent.set_args(cluster.agent_args(cluster.node(0)?, &["--uplink", "eth9"]));
    agent.start_until("not ready without an uplink", |status, body| {
        status == 503 && body.contains("no program is attached at an uplink")
    })?;
    alive()?;
    status(1, &["NOT READY, alive", "no program is attached at an uplink", "error: this node is not ready"])?;
    Ok(())
}
