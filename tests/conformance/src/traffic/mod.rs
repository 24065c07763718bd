//! The conformance table as real traffic: one cluster, the objects of all rules in it, step after step.

mod held;
mod marker;
mod network;
mod probe;

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use self::{held::Held, marker::Marker, network::Network};
use super::{Case, Object, Rule, Step, TARGETS, cases, shared_objects};
use proxy_harness::cluster::{Cluster, Host};

/// Most probes wait for packets that do not come.
const AT_ONCE: usize = 8;

/// A rule in one family, under way.
struct Running {
    rule: Rule,
    case: Case,
    steps: Vec<Step>,
    held: Mutex<Held>,
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.rule.id, if self.case.ipv4 { "IPv4" } else { "IPv6" })
    }
}

/// Runs all rules by the given `--pod-datapath`, or those whose id contains CONFORMANCE_FILTER.
///
/// # Errors
/// Names every rule that failed, and where.
pub fn run(pod_datapath: &'static str) -> Result<()> {
    let filter = std::env::var("CONFORMANCE_FILTER").unwrap_or_default();
    let running: Vec<_> = cases()
        .into_iter()
        .filter(|(rule, _)| rule.id.contains(&filter))
        .map(|(rule, case)| Running { steps: rule.traffic_steps(&case), rule, case, held: Mutex::default() })
        .filter(|running| !running.steps.is_empty())
        .collect();
    let cluster = Cluster::builder().build()?;
    let hosts = cluster.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host]));
    let _servers: Vec<_> = hosts.map(|host| host.serve_all(&TARGETS)).collect::<Result<_>>()?;
    network::prepare(&cluster)?;
    write(&cluster, "shared", &shared_objects())?;

    let network = Network { cluster: &cluster, pod_datapath };
    let marker = Marker { cluster: &cluster };
    let rounds = running.iter().map(|running| running.steps.len()).max().unwrap_or_default();
    let mut agents = Vec::new();
    let mut failures = Vec::new();
    let mut probes = 0;
    for round in 0..rounds {
        let now: Vec<_> = running.iter().filter(|running| round < running.steps.len()).collect();
        for running in &now {
            write(&cluster, &running.case.namespace(), &running.steps[round].objects)?;
        }
        marker.write(round)?;
        if agents.is_empty() {
            // Each step replaces endpoints that were ready, and its probes require exactly the new ones.
            let args = ["--pod-datapath", pod_datapath, "--endpoint-settle-time", "0s"];
            agents = cluster.start_agents(&args)?;
        }
        let begin = Instant::now();
        marker.wait(round).with_context(|| logs(&agents))?;
        let applied = begin.elapsed();
        failures.extend(in_parallel(&now, |running| step(&network, running, round)));
        let count: usize = now.iter().map(|running| running.steps[round].probes.len()).sum();
        probes += count;
        eprintln!(
            "{pod_datapath}: step {} of {} rules in {:.1} s, {count} probes in {:.1} s",
            round + 1,
            now.len(),
            applied.as_secs_f32(),
            begin.elapsed().as_secs_f32(),
        );
    }
    if failures.is_empty() {
        eprintln!("{pod_datapath}: {} rules by family, {probes} probes", running.len());
        return Ok(());
    }
    eprintln!("{}", logs(&agents));
    bail!("by {pod_datapath}, {} of {probes} probes failed:\n  {}", failures.len(), failures.join("\n  "))
}

fn logs(agents: &[proxy_harness::cluster::Agent]) -> String {
    agents.iter().map(proxy_harness::cluster::Agent::log).collect::<Vec<_>>().join("\n---\n")
}

fn write(cluster: &Cluster, name: &str, objects: &[Object]) -> Result<()> {
    let items: Vec<_> = objects.iter().map(|Object(object)| object).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    cluster.manifests.write(&format!("{name}.json"), &list.to_string())
}

/// Makes the probes of a step, one after the other; returns the failures.
fn step(network: &Network<'_>, running: &Running, round: usize) -> Vec<String> {
    let mut held = match running.held.lock() {
        Ok(held) => held,
        Err(poisoned) => poisoned.into_inner(),
    };
    let mut failures = Vec::new();
    for probe in &running.steps[round].probes {
        let result = match probe.held {
            Some(name) => held.check(network, probe, name),
            None => network.check(probe, &mut held),
        };
        if let Err(error) = result {
            let what = format!("{} -> {} by {:?}", probe.from, probe.to, probe.protocol);
            failures.push(format!("{running}, step {}: {what}: {error:#}", round + 1));
        }
    }
    failures
}

fn in_parallel<T: Sync>(all: &[T], work: impl Fn(&T) -> Vec<String> + Sync) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = work(one);
                    if let Ok(mut failures) = failures.lock() {
                        failures.extend(found);
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A pod, node or the client, by name.
fn host<'c>(cluster: &'c Cluster, name: &str) -> Result<&'c Host> {
    let hosts = cluster.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host]));
    hosts
        .chain([&cluster.client])
        .find(|host| host.name == name)
        .with_context(|| format!("no host has the name {name}"))
}
