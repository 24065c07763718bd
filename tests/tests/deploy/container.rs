//! The DaemonSet's container does its work with the privileges that the manifest gives it, and no others. Needs root and crun.
//!
//! Set-up: two nodes with three pods each; crun starts the image of this run on both as the chart describes the
//! container, one of them IPv6-only. One pod has the rules of a service mesh.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::{
    cluster::{Cluster, Container, Failures, Host, MeshRules, Protocol, until},
    traffic::{self, Entry, SERVICE_PORT, SINGLE, Scenario, WEB},
};
use serde_json::{Value, json};

use super::{chart, image};

const SOON: Duration = Duration::from_secs(10);
const NOBODY: u32 = 65_534;

/// The pod template that the chart renders with these values; there is one DaemonSet.
fn pod(values: &Value) -> Result<Value> {
    let mut sets = chart().objects(values)?.into_iter().filter(|object| object["kind"] == "DaemonSet");
    Ok(sets.next().context("a DaemonSet")?["spec"]["template"]["spec"].take())
}

/// The status of this process's capabilities and mode, as the kernel has it.
fn status(container: &Container, field: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", container.agent()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    Ok(line.context(field.to_owned())?.to_owned())
}

/// A connected UDP socket of a process that is not root's leaves an endpoint that is gone.
fn sockets_of_other_users_are_ended(scenario: &Scenario) -> Result<()> {
    let backends: Vec<Host> = scenario.backends(WEB)?.into_iter().cloned().collect();
    scenario.apply(WEB, &[&backends[0]])?;
    let pod = scenario.cluster.pod("pod-1b")?;
    let call = pod.call(scenario.target(Entry::ClusterIp, WEB, true)?).protocol(Protocol::ConnectedUdp);
    until(SOON, "one endpoint", || {
        Ok(call.servers(10)?.iter().all(|server| *server == backends[0].name).then_some(()))
    })?;
    let load = call.keep_alive().every(Duration::from_millis(10)).user(NOBODY).load()?;
    load.wait_for(5)?;
    scenario.apply(WEB, &[&backends[1]])?;
    until(SOON, "the socket to go to the endpoint that is left", || {
        let last = load.report()?.last_server;
        Ok(last.is_some_and(|server| server.ip() == backends[1].v4).then_some(()))
    })
    .with_context(|| format!("{:?}", load.report()))?;
    scenario.apply(WEB, &backends.iter().collect::<Vec<_>>())
}

/// `debug sockets` finds sockets of processes that are not root's.
fn sockets_of_other_users_are_listed(scenario: &Scenario, container: &Container) -> Result<()> {
    let to = scenario.target(Entry::ClusterIp, SINGLE, true)?;
    let _socket = scenario.cluster.pod("pod-1a")?.park_as(NOBODY, &[to])?;
    let bpffs = &scenario.cluster.node(0)?.bpffs;
    let listed = container.exec(&["debug", "--bpffs", &bpffs.to_string_lossy(), "sockets"])?;
    ensure!(listed.contains("default/single:"), "{listed}");
    Ok(())
}

/// A pod whose network namespace redirects packets is found, and served by packets.
fn pods_are_looked_into(scenario: &Scenario, container: &Container) -> Result<()> {
    let mesh = scenario.cluster.pod("pod-1c")?;
    let _proxy = mesh.mesh_proxy()?;
    mesh.redirect(SERVICE_PORT, MeshRules::Nftables)?;
    until(SOON, "the mesh to be seen", || {
        let pods = container.exec(&[
            "debug",
            "--bpffs",
            &scenario.cluster.node(0)?.bpffs.to_string_lossy(),
            "pods",
        ])?;
        Ok(pods.lines().any(|line| line.contains("redirect")).then_some(()))
    })
    .with_context(|| container.log())?;
    // The proxy sees the cluster IP, and connects to it itself.
    let reply = mesh.call(scenario.target(Entry::ClusterIp, SINGLE, true)?).once()?;
    ensure!(reply.answer.is_some(), "{reply:?}");
    Ok(())
}

#[test]
fn the_container_serves_with_the_manifests_privileges() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let rootfs = image::unpack(dir.path()).rootfs;
    let scenario = Scenario::without_agents(Cluster::builder().nodes(2).pods_per_node(3), "auto")?;
    let [plain, ipv6_only] = [json!({}), json!({ "ipv6Only": true })].map(|values| pod(&values));
    let (plain, ipv6_only) = (plain?, ipv6_only?);
    let cluster = &scenario.cluster;
    let v6 = SocketAddr::new(cluster.node(1)?.host.v6.into(), 10_256);
    let first = SocketAddr::new(cluster.node(0)?.host.v4.into(), 10_256);
    let mut failures = Failures::default();
    failures.case("the check lets the agent start where the API server is missing", || {
        let (code, output) = cluster.run_init_container(0, &plain, &rootfs)?;
        println!("{output}");
        ensure!(code == Some(0), "{code:?}: {output}");
        for check in ["programs             pass", "bpffs                pass"] {
            ensure!(output.contains(check), "{check}: {output}");
        }
        ensure!(output.contains("the agent starts all the same"), "{output}");
        Ok(())
    });
    failures.case("the check shows why an agent without privileges would end", || {
        let mut pod = plain.clone();
        pod["initContainers"][0]["securityContext"]["capabilities"]["add"] = json!(["DAC_READ_SEARCH"]);
        let (code, output) = cluster.run_init_container(0, &pod, &rootfs)?;
        ensure!(
            code == Some(1) && output.contains("missing: CAP_NET_ADMIN, CAP_SYS_ADMIN"),
            "{code:?}: {output}"
        );
        Ok(())
    });
    let mut containers = vec![
        cluster.start_container(0, &plain, &rootfs, first)?,
        // kubelet probes the node's address, and an IPv6-only node has no other.
        cluster.start_container(1, &ipv6_only, &rootfs, v6)?,
    ];
    let wanted =
        plain["containers"][0]["securityContext"]["capabilities"]["add"].as_array().map_or(0, Vec::len);
    for container in &containers {
        let effective = u64::from_str_radix(&status(container, "CapEff")?, 16)?;
        // A machine may withhold some from all processes.
        ensure!(effective.count_ones() as usize <= wanted, "capabilities {effective:x}");
        ensure!(status(container, "CapBnd")? == status(container, "CapEff")?);
        ensure!(status(container, "Seccomp")? == "2", "no seccomp filter");
    }
    traffic::smoke(&scenario, "in containers", &Protocol::ALL, &mut failures)?;
    failures.case("status finds the agent, also where it listens at IPv6 addresses alone", || {
        for container in &containers {
            let output = container.exec(&["status"])?;
            ensure!(output.contains("ready, alive"), "{output}");
        }
        Ok(())
    });
    failures.case("source ports are reserved on the node", || {
        let reserved = scenario
            .cluster
            .node(0)?
            .host
            .netns
            .run(|| Ok(fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")?))?;
        ensure!(reserved.trim() == "1024-32767", "{reserved}");
        Ok(())
    });
    failures.case("conntrack is set on the node", || {
        let file = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
        let seconds = scenario.cluster.node(0)?.host.netns.run(|| Ok(fs::read_to_string(file)?))?;
        ensure!(seconds.trim() == "3600", "{seconds}");
        Ok(())
    });
    failures.case("sockets of other users are ended", || sockets_of_other_users_are_ended(&scenario));
    failures.case("sockets of other users are listed", || {
        sockets_of_other_users_are_listed(&scenario, &containers[0])
    });
    failures.case("pods are looked into", || pods_are_looked_into(&scenario, &containers[0]));
    failures.case("no warnings", || {
        let log = containers.iter().map(Container::log).collect::<String>();
        let warnings: Vec<_> = log
            .lines()
            .filter(|line| {
                line.contains("WARN") && line.contains("cannot") && !line.contains("oom_score_adj")
            })
            .collect();
        ensure!(warnings.is_empty(), "{warnings:?}");
        Ok(())
    });
    // Services keep working without the agents, until the cleanup has removed them.
    containers.iter_mut().try_for_each(Container::terminate)?;
    traffic::smoke(&scenario, "after the containers ended", &[Protocol::Tcp], &mut failures)?;
    failures.verdict()?;
    let cleanup = pod(&json!({ "cleanup": { "enabled": true } }))?;
    for (number, node) in scenario.cluster.nodes.iter().enumerate() {
        let (code, output) = scenario.cluster.run_init_container(number, &cleanup, &rootfs)?;
        ensure!(code == Some(0), "{code:?}: {output}");
        ensure!(!node.bpffs.join("links").exists(), "{output}");
    }
    let reply =
        scenario.cluster.pod("pod-1a")?.call(scenario.target(Entry::ClusterIp, SINGLE, true)?).once()?;
    ensure!(reply.answer.is_none(), "services without programs: {reply:?}");
    Ok(())
}
