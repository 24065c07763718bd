//! Networks of many kinds, and the paths of services through them: the table of `docs/networks.md`. Needs root.
//!
//! One after the other under the same running agents: starting an agent takes an emulated processor long.
//!
//! Set-up: two nodes with a pod and a server each, the client behind a router; an agent per node, `--pod-datapath tc`.
//! A shape replaces the path between the nodes, and is removed after its paths were tried.

use std::env;

use anyhow::Result;
use proxy_harness::cluster::{Builder, Cluster, Failures, Masquerade, Narrow, PodNetwork};
use proxy_networks::{Known, Network, Shape, shapes};

/// Tries but the shapes whose name contains this, or one of several that `|` separates.
const ONLY: &str = "PROXY_AGENT_NETWORKS_ONLY";

/// Leaves out shapes that the machine's own kernel tries elsewhere.
const SHORT: &str = "PROXY_AGENT_NETWORKS_SHORT";

/// Makes the shapes alone.
const NO_AGENTS: &str = "PROXY_AGENT_NETWORKS_WITHOUT_AGENTS";

/// Pods' interfaces leave room for every tunnel; masquerade is that of flannel and Calico.
fn cluster(pods: PodNetwork) -> Builder {
    Cluster::builder().pods(pods).narrow(Narrow::Pods).masquerade(Masquerade::FullyRandom)
}

fn run(builder: Builder, shapes: &[&[Shape]]) -> Result<()> {
    let only = env::var(ONLY).unwrap_or_default();
    let is_short = env::var_os(SHORT).is_some();
    let is_wanted = |shape: &&Shape| {
        only.split('|').any(|part| shape.name.contains(part)) && (!is_short || shape.is_for_short_runs())
    };
    let mut shapes = shapes.iter().copied().flatten().filter(is_wanted).peekable();
    if shapes.peek().is_none() {
        return Ok(());
    }
    let known = Known::committed();
    let mut network = Network::start(builder, env::var_os(NO_AGENTS).is_none())?;
    let mut failures = Failures::default();
    for shape in shapes {
        failures.case(shape.name, || network.try_shape(shape, &known));
    }
    failures.verdict()
}

#[test]
fn pods_by_routes() -> Result<()> {
    run(cluster(PodNetwork::Routed), shapes::ROUTED)
}

#[test]
fn pods_on_a_bridge() -> Result<()> {
    // With it the kernel puts IPv6 fragments together, and forgets that they were to fit 1,300 bytes.
    run(cluster(PodNetwork::Bridged).bridge_nf_call(false), shapes::BRIDGED)
}
