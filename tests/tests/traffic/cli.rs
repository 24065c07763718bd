//! The agent's messages about failures, the output of `debug`, the remainder after `cleanup`.
//!
//! Set-up: one node alone or three nodes with routed pods served by sockets; what is wrong (manifest, interface,
//! capabilities, kubeconfig, server) is the test's. `cleanup` is tried after each way of attaching.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::Stdio,
    time::Duration,
};

use anyhow::Result;
use proxy_harness::{
    cluster::{Cluster, Node, PodNetwork, Process, agent_binary, peer_binary, until},
    traffic::{Entry, SINGLE, Scenario, WEB},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
/// How long an agent is watched that must go on trying.
const A_WHILE: Duration = Duration::from_secs(6);
/// An agent that is not optimised, on a machine that is busy.
const STARTED: Duration = Duration::from_secs(20);

fn small() -> Result<Scenario> {
    Scenario::start(Cluster::builder(), "socket", &[])
}

fn alone(pods: PodNetwork) -> Result<Cluster> {
    Cluster::builder().nodes(1).pods(pods).build()
}

/// Answers are there, inside and outside.
fn served(scenario: &Scenario) -> Result<bool> {
    let pod = scenario.cluster.pod("pod-1a")?;
    let inside = pod.call(scenario.target(Entry::ClusterIp, SINGLE, true)?).once()?;
    let outside = scenario.cluster.client.call(scenario.target(Entry::NodePort(0), SINGLE, true)?).once()?;
    Ok(inside.answer.is_some() && outside.answer.is_some())
}

#[test]
fn a_broken_manifest_is_reported_and_the_rest_works() {
    let scenario = small().unwrap();
    let broken = "apiVersion: v1\nkind: Service\nmetadata:\n  name: broken\nspec:\n  clusterIP: 10.96.0.99\n  \
                  ports:\n    - port: eighty\n";
    scenario.cluster.manifests.write("broken.yaml", broken).unwrap();
    scenario.cluster.manifests.write("not-yaml.yaml", "kind: Service\n\tmetadata: {\n").unwrap();
    let agent = &scenario.agents[0];
    let line = agent.wait_for_log("broken.yaml:8").unwrap();
    assert!(line.contains("eighty") || line.contains("port"), "{line}");
    agent.wait_for_log("not-yaml.yaml:1").unwrap();
    assert!(served(&scenario).unwrap());
    // Changes to good files still count.
    scenario.apply(SINGLE, &[scenario.cluster.pod("pod-3b").unwrap()]).unwrap();
    let target = scenario.target(Entry::NodePort(0), SINGLE, true).unwrap();
    let call = scenario.cluster.client.call(target);
    until(SOON, "the change", || Ok((call.servers(1)? == ["pod-3b"]).then_some(()))).unwrap();
}

#[test]
fn a_wrong_interface_is_named() {
    let cluster = alone(PodNetwork::Routed).unwrap();
    let args = cluster.agent_args(&cluster.nodes[0], &["--uplink", "nosuch0"]);
    let (code, output) = cluster.try_agent_until(&cluster.nodes[0], &args, "nosuch0", STARTED).unwrap();
    assert_ne!(code, Some(0), "{output}");
    assert!(output.contains("nosuch0"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
}

#[test]
fn without_capabilities_it_reports_the_missing_ones() {
    let cluster = alone(PodNetwork::Routed).unwrap();
    let node = &cluster.nodes[0];
    // Root, but without a single capability, as in a container that is not privileged.
    let mut args = vec!["--bounding-set=-all".to_owned(), "--inh-caps=-all".to_owned()];
    args.push(agent_binary().unwrap().display().to_string());
    args.extend(cluster.agent_args(node, &[]));
    let command = node.host.command("setpriv").unwrap();
    let (code, output) = cluster.try_command(command, &args, STARTED).unwrap();
    assert!(code.is_some_and(|code| code != 0), "exit code {code:?}: {output}");
    assert!(output.contains("CAP_"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
}

#[test]
fn without_an_api_server_it_reports_it_and_retries() {
    let cluster = alone(PodNetwork::Bridged).unwrap();
    let node = &cluster.nodes[0];
    let kubeconfig = "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster:\n    \
                      server: http://127.0.0.1:1\nusers:\n- name: test\n  user: {}\ncontexts:\n- name: test\n  \
                      context: {cluster: test, user: test}\n";
    let file = cluster.manifests.path().join("kubeconfig");
    fs::write(&file, kubeconfig).unwrap();
    let (code, output) =
        cluster.try_agent(node, &kube_args(&cluster, node, &file.display().to_string()), A_WHILE).unwrap();
    assert_eq!(code, None, "it gave up: {output}");
    assert!(output.contains("127.0.0.1:1"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
}

#[test]
fn credentials_that_are_not_there_end_it() {
    let cluster = alone(PodNetwork::Routed).unwrap();
    let node = &cluster.nodes[0];
    let args = kube_args(&cluster, node, "/nonexistent/kubeconfig");
    let (code, output) = cluster.try_agent(node, &args, SOON).unwrap();
    assert!(code.is_some_and(|code| code != 0), "exit code {code:?}: {output}");
    assert!(output.contains("/nonexistent/kubeconfig"), "{output}");
}

/// The whole way: objects over HTTP, maps, traffic.
#[test]
fn served_from_an_api_server() {
    const SERVER: &str = "127.0.0.1:8001";
    let scenario = Scenario::without_agents(Cluster::builder(), "socket").unwrap();
    let (cluster, node) = (&scenario.cluster, scenario.cluster.node(0).unwrap());
    let of_node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n", node.host.name);
    cluster.manifests.write("node.yaml", &of_node).unwrap();
    let binary = peer_binary().unwrap().with_file_name("apiserver");
    let mut server = node.host.command(&binary.to_string_lossy()).unwrap();
    server.arg(SERVER).arg(cluster.manifests.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut commands = server.stdin.take().unwrap();
    let mut answers = BufReader::new(server.stdout.take().unwrap()).lines();
    let _server = Process::new(server);
    assert!(answers.next().unwrap().unwrap().starts_with("listening"));

    // Nothing listens at the first address.
    let servers = format!("http://127.0.0.1:1,http://{SERVER}");
    let mut args = cluster.agent_args(node, &["--api-server", &servers]);
    without_manifests(&mut args);
    let mut agent = node.host.command(&agent_binary().unwrap().to_string_lossy()).unwrap();
    let _agent = Process::new(agent.args(&args).spawn().unwrap());
    until(STARTED, "answers", || Ok(served(&scenario)?.then_some(()))).unwrap();

    let (code, page) = cluster.try_agent(node, &["status".to_owned()], SOON).unwrap();
    println!("{page}");
    for watch in ["services", "endpointslices", "nodes"] {
        let is_row = |line: &str| line.split_whitespace().take(2).eq([watch, "yes"]);
        assert!(page.lines().any(is_row), "{watch} in {page}");
    }
    assert_eq!(code, Some(0), "{page}");
    assert!(page.contains(&format!("source    http://{SERVER}")), "{page}");

    until(SOON, "metrics", || {
        let metrics = node.host.netns.get("127.0.0.1:10249", "/metrics")?.body;
        let expected = [
            "rest_client_requests_total{code=\"<error>\",method=\"GET\",host=\"127.0.0.1:1\"} ",
            "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"127.0.0.1:8001\"} ",
            "rest_client_request_duration_seconds_count{verb=\"GET\",host=\"127.0.0.1:8001\"} ",
            "kubernetes_build_info{major=\"1\",minor=\"35\",git_version=\"v1.35.1\"",
            "process_resident_memory_bytes ",
            "proxy_agent_watch_version_regressions_total{watch=\"services\"} 0",
        ];
        Ok(expected.iter().all(|text| metrics.contains(text)).then_some(()))
    })
    .unwrap();

    writeln!(commands, "delete service default/single").unwrap();
    assert_eq!(answers.next().unwrap().unwrap(), "ok");
    until(SOON, "the service's end", || Ok((!served(&scenario)?).then_some(()))).unwrap();
}

fn without_manifests(args: &mut Vec<String>) {
    if let Some(at) = args.iter().position(|arg| arg == "--manifests") {
        args.drain(at..at + 2);
    }
}

fn kube_args(cluster: &Cluster, node: &Node, kubeconfig: &str) -> Vec<String> {
    let mut args = cluster.agent_args(node, &["--kubeconfig", kubeconfig]);
    without_manifests(&mut args);
    args
}

#[test]
fn the_log_shows_changes_of_services() {
    let scenario = small().unwrap();
    let agent = &scenario.agents[0];
    for name in ["default/web", "default/single", "default/empty"] {
        agent.wait_for_log(name).unwrap();
    }
    let lines_with = |name: &str| agent.log().lines().filter(|line| line.contains(name)).count();
    let before = lines_with("default/single");
    scenario.apply(SINGLE, &[]).unwrap();
    until(SOON, "a line for the change", || Ok((lines_with("default/single") > before).then_some(())))
        .unwrap();
    let before = lines_with("default/web");
    scenario.cluster.manifests.remove("web.yaml").unwrap();
    until(SOON, "a line for the removal", || Ok((lines_with("default/web") > before).then_some(()))).unwrap();
}

#[test]
fn debug_shows_services_backends_and_flows() {
    let mut scenario = small().unwrap();
    assert!(served(&scenario).unwrap());
    let target = scenario.target(Entry::NodePort(0), WEB, true).unwrap();
    scenario.cluster.client.call(target).servers(5).unwrap();
    // The maps can be read whether or not an agent runs.
    scenario.agents[0].terminate().unwrap();
    let agent = &scenario.agents[0];
    let json = |what: &[&str]| -> String {
        let text = agent.debug(&[what, &["-o", "json"]].concat()).unwrap();
        serde_json::from_str::<Value>(&text)
            .unwrap_or_else(|error| panic!("{what:?}: {error}: {text}"))
            .to_string()
    };
    let services = json(&["services"]);
    for expected in ["default/web", "10.96.0.10", "fd00:10:96::a", "30080"] {
        assert!(services.contains(expected), "no {expected} in {services}");
    }
    let backends = json(&["backends"]);
    for expected in ["10.244.1.11", "10.244.2.10", "fd00:10:244:2::a"] {
        assert!(backends.contains(expected), "no {expected} in {backends}");
    }
    let flows = json(&["flows"]);
    assert!(flows.contains("172.31.0.2") && flows.contains("default/web"), "{flows}");
    json(&["counters"]);
    json(&["sockets"]);
    for what in ["services", "backends", "flows", "sockets", "counters"] {
        agent.debug(&[what]).unwrap();
        agent.debug(&[what, "-o", "yaml"]).unwrap();
    }
    assert!(agent.debug(&["services"]).unwrap().contains("default/web"));
}

#[test]
fn debug_trace_explains() {
    let scenario = small().unwrap();
    let node_1 = scenario.cluster.nodes[0].host.v4;
    let pod = scenario.cluster.pod("pod-1a").unwrap().v4;
    let client = scenario.cluster.client.v4;
    let to = |ip: &str, port: u16| SocketAddr::new(ip.parse().unwrap(), port).to_string();
    let cases = [
        (pod.to_string(), to("10.96.0.11", 80), false, "translate", "default/single"),
        (pod.to_string(), to("10.96.0.13", 80), false, "reject", "default/empty"),
        (pod.to_string(), to("192.0.2.1", 80), false, "pass", ""),
        (client.to_string(), to(&node_1.to_string(), 30_081), true, "translate", "default/single"),
        (client.to_string(), to(&node_1.to_string(), 22), true, "pass", ""),
        (client.to_string(), to("10.96.0.11", 80), true, "pass", ""),
    ];
    for (from, to, outside, verdict, service) in cases {
        let mut args = vec!["trace", "-o", "json", "--from", &from, "--to", &to];
        args.extend(outside.then_some("--from-outside"));
        let text = scenario.agents[0].debug(&args).unwrap();
        let trace: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(trace["verdict"], verdict, "{from} -> {to}: {text}");
        assert!(trace["steps"].as_array().is_some_and(|steps| !steps.is_empty()), "{text}");
        assert!(trace["service"].to_string().contains(service), "{from} -> {to}: {text}");
        if verdict == "translate" {
            assert!(trace["backend"].to_string().contains("10.244.1.11"), "{text}");
        }
    }
}

#[test]
fn cleanup_leaves_nothing() {
    for (datapath, xdp) in [("both", "generic"), ("socket", "off")] {
        let scenario = Scenario::start(Cluster::builder(), datapath, &["--xdp", xdp]);
        let mut scenario = scenario.unwrap();
        assert!(served(&scenario).unwrap());
        for agent in &mut scenario.agents {
            agent.terminate().unwrap();
            agent.cleanup().unwrap();
        }
        for node in &scenario.cluster.nodes {
            let left: Vec<_> = fs::read_dir(&node.bpffs).into_iter().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let soon = Duration::from_millis(300);
        let pod = scenario.cluster.pod("pod-1a").unwrap();
        for service in [WEB, SINGLE] {
            let inside = scenario.target(Entry::ClusterIp, service, true).unwrap();
            let outside = scenario.target(Entry::NodePort(0), service, true).unwrap();
            assert!(pod.call(inside).timeout(soon).once().unwrap().answer.is_none());
            assert!(scenario.cluster.client.call(outside).timeout(soon).once().unwrap().answer.is_none());
        }
        // Twice does no harm.
        scenario.agents[0].cleanup().unwrap();
    }
}
