//! RLIMIT_MEMLOCK, which maps and programs count for before Linux 5.11. Needs root.
//!
//! Set-up: one node, its agent under `prlimit --memlock`, with and without the capability to raise the limit.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_harness::{
    cluster::{Cluster, Process, agent_binary, until},
    kernel_capabilities::counts_locked_memory,
};
use serde_json::Value;

/// All programs go through the verifier, and the processor may be an emulated one.
const PATIENCE: Duration = Duration::from_secs(300);

/// As services of systemd have it: far too little.
const LIMIT: &str = "--memlock=65536:65536";

/// The capabilities in the manifests.
const CAPABILITIES: &str = "-all,+dac_read_search,+net_admin,+net_broadcast,+sys_admin,+sys_ptrace";
const RESOURCE: &str = ",+sys_resource";

/// Arguments of `prlimit` that run the agent with the low limit and these capabilities.
fn limited(capabilities: &str, args: &[String]) -> Result<Vec<String>> {
    let own = [
        LIMIT.to_owned(),
        "setpriv".to_owned(),
        format!("--bounding-set={capabilities}"),
        "--inh-caps=-all".to_owned(),
        agent_binary()?.display().to_string(),
    ];
    Ok([&own, args].concat())
}

/// The finding of `check` about the limit, and its exit code.
fn check(cluster: &Cluster, capabilities: &str) -> Result<(Option<i32>, Value)> {
    let node = cluster.node(0)?;
    let mut args = cluster.agent_args(node, &["-o", "json"]);
    args[0] = "check".to_owned();
    let command = node.host.command("prlimit")?;
    let (code, output) = cluster.try_command(command, &limited(capabilities, &args)?, PATIENCE)?;
    let findings: Vec<Value> = serde_json::from_str(&output).with_context(|| output.clone())?;
    let finding = findings.into_iter().find(|finding| finding["check"] == "RLIMIT_MEMLOCK");
    Ok((code, finding.context("no RLIMIT_MEMLOCK")?))
}

fn start(mut command: Command, args: &[String]) -> Result<Process> {
    Ok(Process::new(command.args(args).stdin(Stdio::null()).spawn()?))
}

#[test]
fn the_agent_raises_the_limit_or_reports_why_it_cannot() -> Result<()> {
    let cluster = Cluster::builder().nodes(1).build()?;
    let node = cluster.node(0)?;
    let counts = counts_locked_memory()?;
    let all = format!("{CAPABILITIES}{RESOURCE}");
    let (code, finding) = check(&cluster, &all)?;
    ensure!(code == Some(0), "{finding}");
    ensure!(finding["state"] == if counts { "pass" } else { "skipped" }, "{finding}");

    let run = cluster.agent_args(node, &[]);
    let mut agent = start(node.host.command("prlimit")?, &limited(&all, &run)?)?;
    until(PATIENCE, "the agent to be healthy", || {
        if !std::path::Path::new(&format!("/proc/{}", agent.id())).exists() {
            bail!("it ended");
        }
        let answer = node.host.netns.get("127.0.0.1:10256", "/healthz");
        Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
    })?;
    agent.terminate()?;

    let (code, finding) = check(&cluster, CAPABILITIES)?;
    if !counts {
        ensure!(code == Some(0), "{finding}");
        return Ok(());
    }
    ensure!(code == Some(1) && finding["state"] == "fail", "{finding}");
    ensure!(finding.to_string().contains("CAP_SYS_RESOURCE"), "{finding}");
    cluster.try_agent(
        node,
        &["cleanup".to_owned(), format!("--bpffs={}", node.bpffs.display())],
        PATIENCE,
    )?;
    let command = node.host.command("prlimit")?;
    let (code, output) = cluster.try_command(command, &limited(CAPABILITIES, &run)?, PATIENCE)?;
    println!("{output}");
    ensure!(code == Some(1), "{code:?}: {output}");
    let error = output.lines().find(|line| line.starts_with("error:")).context("no error")?;
    ensure!(error.contains("RLIMIT_MEMLOCK") && error.contains("CAP_SYS_RESOURCE"), "{error}");
    Ok(())
}
