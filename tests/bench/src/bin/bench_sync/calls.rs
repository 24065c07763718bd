//! Which system calls changes take, as strace counts them; apart from all timing.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proxy_common::layout::id::Id;

use crate::{
    changes,
    cluster_objects::ClusterObjects,
    fixture::{Agent, Fixture},
    maps::Maps,
};

/// Changes that are counted.
const CHANGES: usize = 100;

/// System calls of the agent per endpoint change, by name; bpf(2) by its command, as `BPF_MAP_UPDATE_ELEM`. None without
/// strace.
pub(crate) fn per_change(
    (fixture, agent, maps): (&Fixture, &Agent, &mut Maps),
    cluster_objects: &mut ClusterObjects,
    ids: &[Id],
) -> Result<Option<BTreeMap<String, f64>>> {
    let trace = tempfile::NamedTempFile::new()?;
    let mut command = Command::new("strace");
    command.args(["--follow-forks", "--signal=none", "--output"]).arg(trace.path());
    command.args(["--attach", &agent.id().to_string()]);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut strace = match spawned {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        strace => strace.context("strace")?,
    };
    agent.until("strace", || {
        if let Some(status) = strace.try_wait()? {
            bail!("strace: {status}");
        }
        Ok(is_traced(agent)?.then_some(()))
    })?;
    changes::endpoints((fixture, agent, maps), cluster_objects, ids, CHANGES, false)?;
    kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT)?;
    strace.wait()?;
    let counts = parse(&std::fs::read_to_string(trace.path())?);
    Ok(Some(counts.into_iter().map(|(name, count)| (name, count as f64 / CHANGES as f64)).collect()))
}

/// How many of these calls write maps.
pub(crate) fn map_writes(calls: &BTreeMap<String, f64>) -> f64 {
    let writes =
        ["BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM", "BPF_MAP_UPDATE_BATCH", "BPF_MAP_DELETE_BATCH"];
    writes.iter().filter_map(|write| calls.get(*write)).sum()
}

fn is_traced(agent: &Agent) -> Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{}/task", agent.id()))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
        if tracer.is_none_or(|tracer| tracer.trim() == "0") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Counts the calls in lines like `123 bpf(BPF_MAP_UPDATE_ELEM, {map_fd=7, ...}, 32) = 0`, each when it begins.
fn parse(trace: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in trace.lines() {
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let Some((name, arguments)) = call.split_once('(') else { continue };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let name = if name == "bpf" { arguments.split(',').next().unwrap_or(name) } else { name };
        *counts.entry(name.to_owned()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read() {
        let trace = "\
17 epoll_wait(3, [{events=EPOLLIN}], 1024, 84) = 1
17 bpf(BPF_MAP_UPDATE_ELEM, {map_fd=7, key=0x7f}, 32) = 0
18 futex(0x55d0, FUTEX_WAIT_PRIVATE, 1, NULL <unfinished ...>
17 epoll_wait(3,  <unfinished ...>
18 <... futex resumed>) = 0
18 +++ exited with 0 +++
";
        let counts = parse(trace);
        let expected = [("BPF_MAP_UPDATE_ELEM", 1), ("epoll_wait", 2), ("futex", 1)];
        assert_eq!(counts, expected.map(|(name, count)| (name.to_owned(), count)).into());
        assert_eq!(map_writes(&[("BPF_MAP_UPDATE_ELEM".to_owned(), 0.5)].into()), 0.5);
    }
}
