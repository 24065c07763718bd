//! ClusterIP and NodePort in every kind of cluster: one cluster per combination, the whole table in each.
//!
//! Set-up: three nodes with two pods each and an agent per node. A test is one combination: routed or bridged pods,
//! `--pod-datapath`, XDP, with each `rp_filter` or `bridge-nf-call`, checksum offload on and off.

use anyhow::{Context, Result, ensure};
use proxy_harness::{
    cluster::{Builder, Cluster, PodNetwork},
    traffic::{self, Scenario},
};

const BULK: u64 = 20_000_000;

/// One cluster, the whole table.
fn check(builder: Builder, pod_datapath: &'static str, args: &[&str]) -> Result<()> {
    run(builder.clone(), pod_datapath, args)
        .with_context(|| format!("{builder:?}, --pod-datapath {pod_datapath} {args:?}"))
}

fn run(builder: Builder, pod_datapath: &'static str, args: &[&str]) -> Result<()> {
    let mut scenario = Scenario::without_agents(builder, pod_datapath)?;
    let rules_before = rules(&scenario.cluster)?;
    scenario.agents = scenario.cluster.start_agents(&[&["--pod-datapath", pod_datapath], args].concat())?;
    let mut failures = traffic::all(&scenario)?;
    traffic::bulk(&scenario, BULK, &mut failures)?;
    let changes = traffic::endpoints_come_and_go(&scenario, &mut failures);
    failures.note("endpoints come and go", changes);
    failures.case("nothing is INVALID to conntrack", || {
        for node in &scenario.cluster.nodes {
            let dropped = node.invalid_packets()?;
            ensure!(dropped == 0, "{dropped} packets on {}", node.host.name);
        }
        Ok(())
    });
    failures.case("no netfilter rule is added", || {
        ensure!(rules(&scenario.cluster)? == rules_before);
        Ok(())
    });
    let verdict = failures.verdict();
    if verdict.is_err() {
        for agent in &scenario.agents {
            eprintln!("{}", agent.log());
        }
    }
    verdict
}

fn rules(cluster: &Cluster) -> Result<Vec<String>> {
    cluster.nodes.iter().map(|node| node.netfilter_rules()).collect()
}

fn routed() -> Builder {
    Cluster::builder().pods(PodNetwork::Routed)
}

fn bridged() -> Builder {
    Cluster::builder().pods(PodNetwork::Bridged)
}

#[test]
fn routed_pods_by_sockets() {
    check(routed().rp_filter(1), "socket", &[]).unwrap();
    check(routed().rp_filter(2).offload(false), "socket", &[]).unwrap();
}

#[test]
fn routed_pods_by_packets() {
    check(routed().rp_filter(1), "tc", &[]).unwrap();
    check(routed().rp_filter(2).offload(false), "tc", &[]).unwrap();
}

#[test]
fn routed_pods_by_both() {
    check(routed().rp_filter(2), "both", &[]).unwrap();
    check(routed().rp_filter(1).offload(false), "both", &[]).unwrap();
}

#[test]
fn bridged_pods_by_sockets() {
    check(bridged().bridge_nf_call(true), "socket", &[]).unwrap();
    check(bridged().bridge_nf_call(false).offload(false), "socket", &[]).unwrap();
}

#[test]
fn bridged_pods_by_packets() {
    check(bridged().bridge_nf_call(false), "tc", &[]).unwrap();
    check(bridged().bridge_nf_call(true).offload(false), "tc", &[]).unwrap();
}

#[test]
fn bridged_pods_by_both() {
    check(bridged().bridge_nf_call(true), "both", &[]).unwrap();
    check(bridged().bridge_nf_call(false).offload(false), "both", &[]).unwrap();
}

#[test]
fn native_xdp() {
    for builder in [routed(), bridged()] {
        check(builder.offload(false).xdp_pass(true), "socket", &["--xdp", "native"]).unwrap();
    }
}

#[test]
fn generic_xdp() {
    // XDP computes checksums itself: CHECKSUM_PARTIAL packets are not for it.
    for builder in [routed(), bridged()] {
        check(builder.offload(false), "socket", &["--xdp", "generic"]).unwrap();
    }
}
