//! Settings that kube-proxy has, and their effects: the kernel's connection tracking, `--config` that changes,
//! `--cleanup`, `--init-only` and `--write-config-to`. Needs root.
//!
//! Set-up: one node; agents with the flags or the configuration file of the test.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_harness::cluster::{Cluster, Node, Process, agent_binary, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn sysctl(node: &Node, name: &str) -> Result<u32> {
    let text = node.host.netns.run(|| Ok(fs::read_to_string(format!("/proc/sys/net/netfilter/{name}"))?))?;
    text.trim().parse().context(text.clone())
}

fn status(cluster: &Cluster, node: &Node) -> Result<Value> {
    let args = ["status", "-o", "json"].map(str::to_owned);
    let (_, output) = cluster.try_agent(node, &args, SOON)?;
    let end = output.rfind('}').context(output.clone())?;
    Ok(serde_json::from_str(&output[..=end])?)
}

fn problems(cluster: &Cluster, node: &Node) -> Result<String> {
    Ok(status(cluster, node)?["problems"].to_string())
}

/// The agent sets the same as kube-proxy, once, and leaves the settings that it should not touch.
#[test]
fn connection_tracking_is_set() -> Result<()> {
    const CLOSE_WAIT: &str = "nf_conntrack_tcp_timeout_close_wait";
    const ESTABLISHED: &str = "nf_conntrack_tcp_timeout_established";
    const LIBERAL: &str = "nf_conntrack_tcp_be_liberal";
    let cluster = &Cluster::builder().nodes(1).build()?;
    let node = cluster.node(0)?;
    let before = sysctl(node, CLOSE_WAIT)?;
    ensure!(before == 60 && sysctl(node, ESTABLISHED)? == 432_000, "the kernel's defaults are others");
    let mut agent = cluster.start_agent(0, &["--conntrack-tcp-timeout-established=0"])?;
    ensure!(sysctl(node, CLOSE_WAIT)? == 3_600 && sysctl(node, ESTABLISHED)? == 432_000);
    ensure!(sysctl(node, LIBERAL)? == 0);
    ensure!(!problems(cluster, node)?.contains("conntrack"), "{}", problems(cluster, node)?);
    agent.terminate()?;
    let args =
        ["--conntrack-tcp-be-liberal", "--conntrack-udp-timeout=41s", "--conntrack-udp-timeout-stream=191s"];
    let mut agent = cluster.start_agent(0, &args)?;
    ensure!(sysctl(node, ESTABLISHED)? == 86_400 && sysctl(node, LIBERAL)? == 1);
    ensure!(sysctl(node, "nf_conntrack_udp_timeout")? == 41);
    ensure!(sysctl(node, "nf_conntrack_udp_timeout_stream")? == 191);
    agent.terminate()?;

    // Where /proc/sys cannot be written to, that is a problem of the agent, which serves all the same.
    node.host.netns.sysctl(&[("netfilter/nf_conntrack_tcp_timeout_close_wait", "60")])?;
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let mut command = node.host.command("unshare")?;
    command.args(["--mount", "--propagation=slave", "sh", "-c", script, "sh"]).arg(agent_binary()?);
    let _agent = Process::new(command.args(cluster.agent_args(node, &[])).spawn()?);
    let problems = until(SOON, "the problem to be reported", || {
        let Ok(status) = status(cluster, node) else { return Ok(None) };
        Ok((status["ready"] == true).then(|| status["problems"].to_string()))
    })?;
    ensure!(problems.contains("nf_conntrack_tcp_timeout_close_wait stays 60, not 3600: "), "{problems}");
    ensure!(sysctl(node, CLOSE_WAIT)? == 60);
    Ok(())
}

/// A configuration that cannot work costs nothing: the agent keeps the previous one, and reports it.
#[test]
fn a_configuration_that_cannot_work_is_not_used() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    let node = cluster.node(0)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config.conf");
    let write = |text: &str| fs::write(&path, format!("{HEADER}{text}"));
    write("bindAddressHardFail: true\n")?;
    let shown = path.display().to_string();
    let mut agent = cluster.start_agent(0, &["--config", &shown])?;
    for (text, expected) in [
        ("bindAddressHardFail: true\nmetricsBindAddress: 203.0.113.7:10249\n", "203.0.113.7:10249"),
        ("metricsBindAddress: nowhere\n", "line 3"),
    ] {
        write(text)?;
        until(SOON, "the problem to be reported", || {
            let problems = problems(&cluster, node)?;
            Ok((problems.contains("is not used") && problems.contains(expected)).then_some(()))
        })?;
        ensure!(agent.is_running(), "{text}");
    }
    write("bindAddressHardFail: true\n")?;
    until(SOON, "all to be well", || Ok((!problems(&cluster, node)?.contains("is not used")).then_some(())))?;
    ensure!(agent.is_running());
    write("bindAddressHardFail: true\noomScoreAdj: -5\n")?;
    let code = agent.wait(SOON)?;
    ensure!(code == Some(1), "one that can be used is: {code:?}");
    Ok(())
}

/// They do the same as kube-proxy's, and end.
#[test]
fn flags_that_end_at_once() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    let node = cluster.node(0)?;
    let folder = tempfile::tempdir()?;
    let run = |further: &[&str]| cluster.try_agent(node, &cluster.agent_args(node, further), SOON);

    let (code, output) = run(&["--init-only"])?;
    ensure!(
        code == Some(0) && output.contains("nf_conntrack_tcp_timeout_close_wait: 60 -> 3600"),
        "{output}"
    );
    ensure!(sysctl(node, "nf_conntrack_tcp_timeout_close_wait")? == 3_600);
    let reserved = || Ok(fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")?);
    let reserved = node.host.netns.run(reserved)?;
    ensure!(reserved.trim() == "1024-32767", "{reserved}");

    let path = folder.path().join("written.conf").display().to_string();
    let (code, output) = run(&["--write-config-to", &path, "--min-sync-period=2s", "--oom-score-adj=-7"])?;
    ensure!(code == Some(0), "{output}");
    let mut agent = cluster.start_agent(0, &["--config", &path])?;
    let configz = node.host.netns.feed("curl", &["-s", "http://127.0.0.1:10249/configz"], "");
    if let Ok(configz) = configz {
        ensure!(
            configz.contains("\"oomScoreAdj\":-7") && configz.contains("\"minSyncPeriod\":\"2s\""),
            "{configz}"
        );
    }
    let (code, output) = run(&["--cleanup"])?;
    ensure!(code == Some(1) && output.contains("an agent runs"), "{output}");
    agent.terminate()?;
    ensure!(node.bpffs.join("links").exists());
    let (code, output) = run(&["--cleanup"])?;
    ensure!(code == Some(0) && !node.bpffs.join("links").exists(), "{output}");
    Ok(())
}
