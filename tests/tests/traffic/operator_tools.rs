//! `monitor`, `top`, `status` and `log-level` on a node with traffic, and their output in docs/operations.md.
//!
//! Set-up: three nodes with two routed pods each, pods served by sockets; the tools run on the first node. For the
//! documents, an agent follows the API server's stand-in.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use proxy_common::layout::event::Watch as Watching;
use proxy_harness::{
    cluster::{Cluster, Node, Process, Protocol, agent_binary, peer_binary, until},
    traffic::{EMPTY, Entry, SINGLE, Scenario, WEB},
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
/// The port of `away`, whose endpoints are on another node, with `externalTrafficPolicy: Local`.
const AWAY_PORT: u16 = 30_199;

const AWAY: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: away, namespace: default}\nspec:\n  type: NodePort\n  \
                    clusterIP: 10.96.0.99\n  clusterIPs: [10.96.0.99]\n  externalTrafficPolicy: Local\n  ports:\n  \
                    - {name: http, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30199}\n---\napiVersion: \
                    discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: away-ipv4\n  namespace: default\n  \
                    labels: {kubernetes.io/service-name: away}\naddressType: IPv4\nports:\n- {name: http, protocol: \
                    TCP, port: 8080}\nendpoints:\n- {addresses: [10.244.2.10], nodeName: node-2, conditions: \
                    {ready: true, serving: true, terminating: false}}\n";

/// A command that watches.
struct Watch {
    process: Process,
    output: PathBuf,
}

impl Watch {
    /// Starts it and waits until it watches.
    fn start(node: &Node, output: &Path, args: &[&str]) -> Result<Self> {
        let mut command = node.host.command(&agent_binary()?.to_string_lossy())?;
        command.args(args).arg("--bpffs").arg(&node.bpffs).stdin(Stdio::null()).stdout(File::create(output)?);
        let mut child: Child = command.stderr(Stdio::piped()).spawn()?;
        let errors = child.stderr.take().context("no standard error")?;
        let process = Process::new(child);
        let first = BufReader::new(errors).lines().next().context("it ended")??;
        ensure!(first.starts_with("watching"), "{first}");
        Ok(Self { process, output: output.to_owned() })
    }

    fn text(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.output)?)
    }

    /// Waits for a line with all of these.
    fn line(&self, parts: &[&str]) -> Result<String> {
        let found = until(SOON, &format!("a line with {parts:?}"), || {
            let text = self.text()?;
            Ok(text.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned))
        });
        found.with_context(|| self.text().unwrap_or_default())
    }

    /// Waits until it ends by itself.
    fn end(self) -> Result<String> {
        let process = self.process.id();
        until(SOON, "the end of a watch", || {
            let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            Ok((status.is_empty() || status.contains(") Z ")).then_some(()))
        })
        .with_context(|| fs::read_to_string(&self.output).unwrap_or_default())?;
        self.text()
    }
}

/// Whether a watch exists on a node.
fn is_watched(node: &Node) -> Result<bool> {
    let directory = fs::read_dir(&node.bpffs)?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("maps-services-"))
        .context("no maps")?;
    let map = MapData::from_pin(directory.path().join("watches"))?;
    let map: Array<MapData, Watching> = Map::Array(map).try_into()?;
    Ok(map.get(&0, 0)?.until != 0)
}

fn tool(node: &Node, args: &[&str]) -> Result<(bool, String)> {
    let output = node.host.command(&agent_binary()?.to_string_lossy())?.args(args).output()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.success(), text))
}

#[test]
fn decisions_are_shown_while_somebody_watches() {
    let mut scenario = Scenario::without_agents(Cluster::builder(), "socket").unwrap();
    scenario.cluster.manifests.write("away.yaml", AWAY).unwrap();
    scenario.agents = scenario.cluster.start_agents(&["--pod-datapath", "socket"]).unwrap();
    let (cluster, node) = (&scenario.cluster, scenario.cluster.node(0).unwrap());
    let logs = tempfile::tempdir().unwrap();
    let output = |name: &str| logs.path().join(name);
    let target = |entry, service, ipv4| scenario.target(entry, service, ipv4).unwrap();
    assert!(!is_watched(node).unwrap());

    let mut all = Watch::start(node, &output("all"), &["monitor"]).unwrap();
    let refused =
        ["monitor", "--json", "--verdict", "rejected", "--service", "default/empty", "--count", "2"];
    let refused = Watch::start(node, &output("rejected"), &refused).unwrap();
    assert!(is_watched(node).unwrap());

    // Packets: to an endpoint here and to one on another node, of both families and protocols.
    let client = &cluster.client;
    for ipv4 in [true, false] {
        let reply = client.call(target(Entry::NodePort(0), SINGLE, ipv4)).once().unwrap();
        assert!(reply.answer.is_some(), "{reply:?}");
    }
    let endpoint = format!("-> {}:8080", cluster.pod("pod-1b").unwrap().v4);
    let from = format!("  TCP   {}:", client.v4);
    let line = all.line(&["translated", &from, ":30081 -> ", &endpoint, "  default/single:tcp-80"]).unwrap();
    assert!(!line.contains(" from "), "the client's address stays: {line}");
    let endpoint = format!("-> [{}]:8080", cluster.pod("pod-1b").unwrap().v6);
    all.line(&["translated", &format!("  TCP   [{}]:", client.v6), &endpoint]).unwrap();
    let web = client.call(target(Entry::NodePort(0), WEB, true)).protocol(Protocol::Udp);
    until(SOON, "an endpoint of another node", || {
        Ok(web.servers(1)?.iter().any(|name| name.starts_with("pod-2")).then_some(()))
    })
    .unwrap();
    let own = format!(" from {}:", node.host.v4);
    all.line(&["translated", "  UDP ", ":30080 -> 10.244.2.", &own, "  default/web:udp-80"]).unwrap();
    // Rejects and drops, with their reasons.
    client.call(target(Entry::NodePort(0), EMPTY, true)).once().unwrap();
    all.line(&["rejected", &from, ":30083  default/empty:tcp-80  no_endpoints"]).unwrap();
    let mut away = target(Entry::NodePort(0), EMPTY, true);
    away.set_port(AWAY_PORT);
    client.call(away).timeout(Duration::from_millis(300)).once().unwrap();
    all.line(&["dropped", &from, ":30199  default/away:http  no_local_endpoints"]).unwrap();

    // Sockets.
    let pod = cluster.pod("pod-1a").unwrap();
    pod.call(target(Entry::ClusterIp, SINGLE, true)).once().unwrap();
    all.line(&["translated", "  TCP   peer[", "] -> 10.96.0.11:80 -> 10.244.1.", "default/single:tcp-80"])
        .unwrap();
    pod.call(target(Entry::ClusterIp, SINGLE, false)).protocol(Protocol::Udp).once().unwrap();
    all.line(&["translated", "  UDP   peer[", "] -> [fd00:10:96::b]:80 -> [fd00:"]).unwrap();
    pod.call(target(Entry::ClusterIp, EMPTY, true)).once().unwrap();
    all.line(&["rejected", "peer[", "] -> 10.96.0.13:80  default/empty:tcp-80  no_endpoints"]).unwrap();
    let mut undefined = target(Entry::ClusterIp, SINGLE, true);
    undefined.set_port(81);
    pod.call(undefined).once().unwrap();
    all.line(&["rejected", "peer[", "] -> 10.96.0.11:81  default/single  undefined_port"]).unwrap();

    // The requested ones, and no others.
    let lines = refused.end().unwrap();
    let decisions: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(decisions.len(), 2, "{lines}");
    for decision in &decisions {
        assert_eq!((&decision["verdict"], &decision["reason"]), (&"rejected".into(), &"no_endpoints".into()));
        assert_eq!(decision["service"], "default/empty:tcp-80");
    }

    // A flood is bounded, and the number of lost events is reported.
    let few = Watch::start(node, &output("few"), &["monitor", "--limit", "1", "--for", "4s"]).unwrap();
    client.call(target(Entry::NodePort(0), SINGLE, true)).protocol(Protocol::Udp).times(200).unwrap();
    let text = few.end().unwrap();
    let lost =
        text.lines().filter_map(|line| line.split_once(" events lost")?.0.parse::<u64>().ok()).sum::<u64>();
    assert!(lost > 100, "{text}");
    assert!(text.lines().filter(|line| line.contains("translated")).count() < 60, "{text}");

    // Nothing is left of a watch that was killed, and the next agent's programs are watched as well.
    all.process.kill().unwrap();
    until(SOON, "no watch to be left", || Ok((!is_watched(node)?).then_some(()))).unwrap();
    let again = Watch::start(node, &output("again"), &["monitor", "--port", "30081"]).unwrap();
    scenario.agents[0].kill().unwrap();
    scenario.agents[0].start().unwrap();
    until(SOON, "a flow through the new agent's programs", || {
        scenario.cluster.client.call(scenario.target(Entry::NodePort(0), SINGLE, true)?).once()?;
        Ok(again.text()?.contains("default/single:tcp-80").then_some(()))
    })
    .unwrap();

    log_level(&scenario).unwrap();
}

/// The level is changed while the agent runs, and only where one runs.
fn log_level(scenario: &Scenario) -> Result<()> {
    let (agent, node) = (&scenario.agents[0], scenario.cluster.node(0)?);
    let bpffs = node.bpffs.display().to_string();
    let ask = |args: &[&str]| tool(node, &[&["log-level", "--bpffs", &bpffs], args].concat());
    let (ok, begun) = ask(&[])?;
    ensure!(ok && begun.contains("info") && !begun.contains("debug"), "{begun}");
    let debug = || agent.log().lines().filter(|line| line.contains("DEBUG")).count();
    ensure!(debug() == 0, "{}", agent.log());
    let (ok, text) = ask(&["debug"])?;
    ensure!(ok && text.contains("proxy_agent=debug"), "{text}");
    agent.wait_for_log("as `log-level` asks")?;
    scenario.apply(WEB, &[])?;
    until(SOON, "a line at the level debug", || Ok((debug() > 0).then_some(())))?;
    ensure!(ask(&["default"])? == (true, begun.clone()), "the level that it began with");
    ensure!(ask(&[])? == (true, begun), "the level is kept");
    for wrong in ["proxy_agent=nonsense", "a=b=c"] {
        let (ok, text) = ask(&[wrong])?;
        ensure!(!ok && text.contains("is not a filter"), "{text}");
    }
    let (ok, text) = tool(node, &["log-level", "--bpffs", &format!("{bpffs}-none")])?;
    ensure!(!ok && text.contains("no agent runs"), "{text}");
    Ok(())
}

#[test]
fn documents_show_what_commands_print() {
    const SERVER: &str = "127.0.0.1:8001";
    let scenario = Scenario::without_agents(Cluster::builder(), "socket").unwrap();
    let (cluster, node) = (&scenario.cluster, scenario.cluster.node(0).unwrap());
    cluster.manifests.write("away.yaml", AWAY).unwrap();
    let of_node = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n", node.host.name);
    cluster.manifests.write("node.yaml", &of_node).unwrap();
    let mut server =
        node.host.command(&peer_binary().unwrap().with_file_name("apiserver").to_string_lossy()).unwrap();
    server.arg(SERVER).arg(cluster.manifests.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let first = BufReader::new(server.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let _server = Process::new(server);
    assert!(first.starts_with("listening"), "{first}");
    let mut args = cluster.agent_args(node, &["--api-server", &format!("http://{SERVER}")]);
    let manifests = args.iter().position(|arg| arg == "--manifests").unwrap();
    args.drain(manifests..manifests + 2);
    let mut agent = node.host.command(&agent_binary().unwrap().to_string_lossy()).unwrap();
    agent.args(&args).stdin(Stdio::null()).stderr(Stdio::null());
    let _agent = Process::new(agent.spawn().unwrap());
    until(Duration::from_secs(120), "an agent that is ready", || {
        let (ok, page) = tool(node, &["status"])?;
        Ok((ok && page.contains("21 service ports")).then_some(()))
    })
    .unwrap();

    let logs = tempfile::tempdir().unwrap();
    let monitor = Watch::start(node, &logs.path().join("monitor"), &["monitor", "--count", "5"]).unwrap();
    let target = |entry, service| scenario.target(entry, service, true).unwrap();
    let (client, pod) = (&cluster.client, cluster.pod("pod-1a").unwrap());
    let mut away = target(Entry::NodePort(0), SINGLE);
    client.call(away).once().unwrap();
    pod.call(target(Entry::ClusterIp, SINGLE)).once().unwrap();
    // One datagram: a SYN would be sent again.
    let moment = Duration::from_millis(300);
    let empty = client.call(target(Entry::NodePort(0), EMPTY)).protocol(Protocol::Udp);
    empty.timeout(moment).once().unwrap();
    pod.call(target(Entry::ClusterIp, EMPTY)).once().unwrap();
    away.set_port(AWAY_PORT);
    client.call(away).timeout(moment).once().unwrap();
    let monitor = monitor.end().unwrap();

    let loads = [
        client.call(target(Entry::NodePort(0), SINGLE)).every(Duration::from_millis(5)).load().unwrap(),
        pod.call(target(Entry::ClusterIp, SINGLE)).every(Duration::from_millis(20)).load().unwrap(),
        client.call(target(Entry::NodePort(0), EMPTY)).every(Duration::from_millis(100)).load().unwrap(),
    ];
    for load in &loads {
        load.wait_for(1).unwrap();
    }
    let bpffs = node.bpffs.display().to_string();
    let (ok, top) = tool(node, &["top", "--once", "--bpffs", &bpffs]).unwrap();
    assert!(ok, "{top}");
    let (ok, json) = tool(node, &["top", "--once", "--json", "--interval", "1s", "--bpffs", &bpffs]).unwrap();
    assert!(ok, "{json}");
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["services"][0]["service"], "default/single:tcp-80", "{json}");
    assert!(json["services"][0]["newFlows"].as_f64().unwrap() > 1.0, "{json}");
    assert!(json["services"][0]["sockets"].as_f64().unwrap() > 1.0, "{json}");
    assert_eq!(json["reasons"][0]["reason"], "no_endpoints", "{json}");
    drop(loads);
    assert!(!is_watched(node).unwrap());
    let (ok, status) = tool(node, &["status"]).unwrap();
    assert!(ok, "{status}");

    let mut document = fs::read_to_string(DOCUMENT).unwrap();
    for (command, output) in [("status", status), ("monitor", monitor), ("top --once", top)] {
        show(&mut document, command, &output).unwrap();
    }
    if env::var_os("PROXY_AGENT_BLESS").is_some() {
        File::create(DOCUMENT).unwrap().write_all(document.as_bytes()).unwrap();
    }
}

/// Compares what a command prints with the block of the document that begins with it; varying parts do not count. With
/// `PROXY_AGENT_BLESS` it becomes the block.
fn show(document: &mut String, command: &str, output: &str) -> Result<()> {
    let begin = format!("    $ proxy-agent {command}\n");
    let at = document.find(&begin).with_context(|| format!("no block begins with {begin:?}"))? + begin.len();
    let rest = &document[at..];
    let mut length = 0;
    for line in rest.split_inclusive('\n') {
        if !line.starts_with("    ") && !line.trim().is_empty() {
            break;
        }
        length += line.len();
    }
    let block = rest[..length].trim_end();
    let indented: String = output
        .trim_end()
        .lines()
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") })
        .collect();
    if env::var_os("PROXY_AGENT_BLESS").is_some() {
        document.replace_range(at..at + length, &(indented + "\n"));
        return Ok(());
    }
    ensure!(
        shape(block) == shape(&indented),
        "docs/operations.md does not show what `proxy-agent {command}` prints: set PROXY_AGENT_BLESS=1\n{indented}"
    );
    Ok(())
}

/// A text without numbers, ages and the width of columns.
fn shape(text: &str) -> String {
    let word = |word: &str| {
        let mut shape = String::new();
        for char in word.chars() {
            let char = if char.is_ascii_digit() { '#' } else { char };
            // `0`, `12` and `12.5` are alike, and so are addresses.
            if char == '#' && shape.ends_with('#') || char == '.' && shape.ends_with('#') {
                continue;
            }
            shape.push(char);
        }
        match shape.as_str() {
            "#s" | "#m" | "#h" => "AGE".to_owned(),
            _ => shape,
        }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.trim_end().lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn shapes_leave_out_what_varies() {
    for (one, other, same) in [
        ("up 3s,  pid 7", "up 12m, pid 4711", false),
        ("applied 3s ago  x", "applied 12m ago x", true),
        ("10.244.1.5:40000 -> 10.96.0.1:80", "10.244.12.5:1 -> 10.96.0.1:80", true),
        ("rate 0", "rate 12.5", true),
        ("rejected", "dropped", false),
        ("a 1", "a 1 2", false),
    ] {
        assert_eq!(shape(one) == shape(other), same, "{one:?} {other:?}");
    }
}
