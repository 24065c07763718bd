//! `proxy-agent check` as an operator runs it on a node, before and after the agent.
//!
//! Set-up: one node with two routed pods. `check` runs beside no agent, beside one, beside rules of kube-proxy, without
//! capabilities, and with the API server's stand-in at 127.0.0.1 of the node.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use proxy_harness::cluster::{Cluster, ForeignProgram, Node, Position, Process, agent_binary, peer_binary};
use serde_json::Value;

/// All programs go through the verifier.
const PATIENCE: Duration = Duration::from_secs(120);

fn alone() -> Result<Cluster> {
    Cluster::builder().nodes(1).build()
}

/// The output of `check` on a node, and its exit code.
struct Checked {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Checked {
    fn run(cluster: &Cluster, further: &[&str]) -> Result<Self> {
        let node = cluster.node(0)?;
        let mut args = arguments(cluster, node, further);
        args.extend(["-o".to_owned(), "json".to_owned()]);
        let (code, output) = cluster.try_agent(node, &args, PATIENCE)?;
        let findings = serde_json::from_str(&output).with_context(|| output.clone())?;
        Ok(Self { code, findings })
    }

    /// Fails unless a check has this state, and its facts and advice contain these texts.
    #[track_caller]
    fn expect(&self, check: &str, state: &str, seen: &str, advice: &str) {
        let finding = self.findings.iter().find(|finding| finding["check"] == check);
        assert!(finding.is_some(), "no `{check}` in {:?}", self.findings);
        let finding = finding.unwrap_or(&Value::Null);
        let text = |field: &str| finding[field].as_str().unwrap_or_default().to_owned();
        assert_eq!(finding["state"], state, "{finding}");
        assert!(text("seen").contains(seen), "{finding}");
        assert!(text("advice").contains(advice), "{finding}");
    }

    #[track_caller]
    fn expect_code(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{:#?}", self.findings);
    }
}

/// The agent's own arguments on that node.
fn arguments(cluster: &Cluster, node: &Node, further: &[&str]) -> Vec<String> {
    let mut args = cluster.agent_args(node, further);
    args[0] = "check".to_owned();
    args
}

/// Possible remains of a check: cgroups, pins, mounts, rules, interfaces.
fn traces(node: &Node) -> Result<Vec<String>> {
    let names = |path: &std::path::Path| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let mut traces = names(&node.cgroup);
    traces.push("pins".to_owned());
    traces.extend(names(&node.bpffs));
    let of_bpf = fs::read_to_string("/proc/self/mounts")?;
    traces.extend(of_bpf.lines().filter(|line| line.contains(" bpf ")).map(str::to_owned));
    traces.push(node.netfilter_rules()?);
    Ok(traces)
}

#[test]
fn a_node_that_is_well_and_then_has_an_agent() {
    let cluster = alone().unwrap();
    let node = &cluster.nodes[0];
    let before = traces(node).unwrap();
    let checked = Checked::run(&cluster, &[]).unwrap();
    checked.expect_code(0);
    for finding in &checked.findings {
        assert!(["pass", "warn", "skipped"].contains(&finding["state"].as_str().unwrap()), "{finding}");
    }
    for check in [
        "kernel",
        "capabilities",
        "programs",
        "bpffs",
        "running agent",
        "socket hooks",
        "kube-proxy",
        "uplinks",
    ] {
        checked.expect(check, "pass", "", "");
    }
    checked.expect("socket hooks", "pass", "127.99.0.1:", "");
    // The cluster's nodes share a hierarchy with the rest of the machine.
    checked.expect("cgroup root", "warn", "not the root", "--cgroup-root");
    checked.expect("API server", "skipped", "--manifests", "");
    assert_eq!(traces(node).unwrap(), before, "it leaves nothing");

    // The table has the same lines, for people.
    let (code, table) = cluster.try_agent(node, &arguments(&cluster, node, &[]), PATIENCE).unwrap();
    assert_eq!(code, Some(0), "{table}");
    assert!(table.starts_with("CHECK"), "{table}");
    for finding in &checked.findings {
        let (check, state) = (finding["check"].as_str().unwrap(), finding["state"].as_str().unwrap());
        let line = table.lines().find(|line| line.starts_with(&format!("{check} ")));
        assert!(line.is_some_and(|line| line.contains(state)), "{check} {state} in {table}");
    }
    assert!(table.trim_end().lines().last().unwrap().contains(" pass"), "{table}");

    let (code, output) =
        cluster.try_agent(node, &arguments(&cluster, node, &["--nosuch"]), PATIENCE).unwrap();
    assert_eq!(code, Some(2), "{output}");

    // `check` does not report the agent's own programs as foreign, and continues.
    let mut agent = cluster.start_agent(0, &[]).unwrap();
    let checked = Checked::run(&cluster, &[]).unwrap();
    checked.expect_code(0);
    checked.expect("running agent", "warn", "--bpffs", "stop it");
    checked.expect("foreign programs", "pass", "none", "");
    checked.expect("socket hooks", "pass", "", "");
    assert!(agent.is_running());
    agent.terminate().unwrap();
    Checked::run(&cluster, &[]).unwrap().expect("running agent", "pass", "taken over", "");
}

/// Set-up: the node has no IPv6 address but that of loopback, as most nodes of single-stack clusters.
#[test]
fn sockets_of_both_families_are_tried_on_a_node_with_one() {
    let cluster = alone().unwrap();
    cluster.nodes[0].host.netns.ip_with(&["-6"], &["addr flush dev eth0 scope global".to_owned()]).unwrap();
    let checked = Checked::run(&cluster, &[]).unwrap();
    checked.expect("socket hooks", "pass", "127.99.0.1:", "");
    checked.expect("socket hooks", "pass", "[::1]:", "");
}

#[test]
fn problems_have_advice() {
    let cluster = alone().unwrap();
    let node = &cluster.nodes[0];
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let checked =
        Checked::run(&cluster, &["--cgroup-root", folder, "--uplink", "nosuch0", "--bpffs", folder]).unwrap();
    checked.expect_code(1);
    checked.expect("cgroup root", "fail", "is not cgroup2", "--cgroup-root");
    checked.expect("socket hooks", "unknown", "no cgroup2", "");
    checked.expect("bpffs", "fail", folder, "mount -t bpf");
    checked.expect("uplinks", "fail", "nosuch0", "--uplink");

    // Programs and rules of others on the node: warnings, all at once.
    node.host.netns.nft("add table ip nat; add chain ip nat KUBE-SERVICES").unwrap();
    let mesh = "table ip mesh {\n chain in {\n type nat hook prerouting priority dstnat\n tcp dport 7 dnat to 10.0.0.1:7\n }\n }";
    node.host.netns.nft(mesh).unwrap();
    node.host
        .netns
        .ip(&["link add kube-ipvs0 type bridge".into(), "addr add 10.96.0.10/32 dev kube-ipvs0".into()])
        .unwrap();
    node.host.netns.sysctl(&[("ipv4/ip_forward", "0")]).unwrap();
    let foreign = ForeignProgram::attach(
        &node.host.netns,
        "eth0",
        true,
        Position::Clsact,
        node.bpffs.parent().unwrap(),
    );
    let _foreign = foreign.unwrap();
    let checked = Checked::run(&cluster, &[]).unwrap();
    checked.expect_code(0);
    checked.expect("kube-proxy", "warn", "KUBE-SERVICES", "proxy-agent migrate --commit");
    checked.expect("NAT rules", "warn", "table mesh, chain in", "nft list ruleset");
    checked.expect("IPVS", "warn", "kube-ipvs0", "proxy-agent migrate");
    checked.expect("forwarding", "warn", "ip_forward", "sysctl -w net.ipv4.ip_forward=1");
    checked.expect("foreign programs", "warn", "ingress of eth0", "tc");
}

#[test]
fn without_capabilities_nothing_passes_that_was_not_tried() {
    let cluster = alone().unwrap();
    let node = &cluster.nodes[0];
    let mut args = vec!["--bounding-set=-all".to_owned(), "--inh-caps=-all".to_owned()];
    args.push(agent_binary().unwrap().display().to_string());
    args.extend(arguments(&cluster, node, &["-o", "json"]));
    let run =
        |args: &[String]| cluster.try_command(node.host.command("setpriv").unwrap(), args, PATIENCE).unwrap();
    let (code, output) = run(&args);
    let findings = serde_json::from_str(&output).with_context(|| output.clone()).unwrap();
    let checked = Checked { code, findings };
    checked.expect_code(1);
    checked.expect("capabilities", "fail", "CAP_NET_ADMIN", "deploy/base/daemonset.yaml");
    checked.expect("programs", "unknown", "CAP_SYS_ADMIN", "");
    checked.expect("socket hooks", "unknown", "", "");
    args.push("--init-container".to_owned());
    assert_eq!(run(&args).0, Some(1), "the agent would end at its start");
}

#[test]
fn the_api_server_and_its_rights() {
    const SERVER: &str = "127.0.0.1:8001";
    let cluster = alone().unwrap();
    let node = &cluster.nodes[0];
    let url = format!("http://{SERVER}");
    let run_with = |further: &[&str]| -> Result<Checked> {
        let further = [&["--api-server", &url, "-o", "json"], further].concat();
        let mut args = arguments(&cluster, node, &further);
        if let Some(at) = args.iter().position(|arg| arg == "--manifests") {
            args.drain(at..at + 2);
        }
        let (code, output) = cluster.try_agent(node, &args, PATIENCE)?;
        Ok(Checked { code, findings: serde_json::from_str(&output).with_context(|| output.clone())? })
    };
    let run = || run_with(&[]);
    let checked = run().unwrap();
    checked.expect_code(1);
    checked.expect("API server", "fail", SERVER, "--api-server");
    checked.expect("API rights", "unknown", "", "");
    // Conditions that the agent waits for do not keep an init container from passing.
    let checked = run_with(&["--init-container", "--uplink", "nosuch0"]).unwrap();
    checked.expect_code(0);
    checked.expect("API server", "fail", SERVER, "--api-server");
    checked.expect("uplinks", "fail", "nosuch0", "--uplink");

    let binary = peer_binary().unwrap().with_file_name("apiserver");
    let mut server = node.host.command(&binary.to_string_lossy()).unwrap();
    server.arg(SERVER).arg(cluster.manifests.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut answers = BufReader::new(server.stdout.take().unwrap()).lines();
    let _server = Process::new(server);
    assert!(answers.next().unwrap().unwrap().starts_with("listening"));
    let checked = run().unwrap();
    checked.expect_code(0);
    checked.expect("API server", "pass", SERVER, "");
    checked.expect("API rights", "warn", "does not exist", "--node-name");
}
