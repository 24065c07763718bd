//! Networks of all common shapes: large transfers on every path through a service. Needs root.
//!
//! Set-up: two nodes with two pods each and an agent per node; a test is one network: see
//! [docs/dev/test-networks.md](../../../docs/dev/test-networks.md).

use anyhow::{Context, Result, ensure};
use proxy_harness::{
    cluster::{
        Builder, Cluster, Failures, ForeignProgram, Narrow, NodeDevice, Overlay, PodNetwork, Position,
        SecondUplink,
    },
    traffic::{Scenario, Transfers, single::conclude_with_conntrack, transfers},
};

const MANY: u64 = 20_000_000;

/// One cluster, all paths.
fn check(builder: Builder, pod_datapath: &'static str, args: &[&str]) -> Result<()> {
    let has_second_address = false;
    run(builder.clone(), pod_datapath, args, Transfers { bytes: MANY, has_second_address })
        .with_context(|| format!("{builder:?}, --pod-datapath {pod_datapath} {args:?}"))
}

fn run(builder: Builder, pod_datapath: &'static str, args: &[&str], what: Transfers) -> Result<()> {
    let scenario = Scenario::start(builder.nodes(2), pod_datapath, args)?;
    let mut failures = Failures::default();
    transfers(&scenario, what, &mut failures)?;
    conclude_with_conntrack(&scenario, failures)
}

fn routed() -> Builder {
    Cluster::builder().pods(PodNetwork::Routed)
}

fn bridged() -> Builder {
    Cluster::builder().pods(PodNetwork::Bridged)
}

#[test]
fn plain_routes() {
    check(routed(), "tc", &[]).unwrap();
    check(bridged().offload(false), "tc", &[]).unwrap();
}

#[test]
fn generic_xdp() {
    check(routed().offload(false), "socket", &["--xdp", "generic"]).unwrap();
    check(bridged().offload(false).overlay(Overlay::Vxlan), "socket", &["--xdp", "generic"]).unwrap();
}

#[test]
fn vxlan() {
    check(bridged().overlay(Overlay::Vxlan), "tc", &[]).unwrap();
    check(routed().overlay(Overlay::Vxlan), "both", &[]).unwrap();
}

#[test]
fn vxlan_without_addresses() {
    check(bridged().overlay(Overlay::UnnumberedVxlan), "tc", &[]).unwrap();
}

#[test]
fn asymmetric_uplinks() {
    // Packets come in by an interface that answers do not leave by: no place for strict source checks.
    check(routed().second_uplink(SecondUplink::Asymmetric).rp_filter(2), "tc", &[]).unwrap();
}

#[test]
fn policy_routing() {
    let builder = routed().second_uplink(SecondUplink::PolicyRouted).rp_filter(2);
    let transfers = Transfers { bytes: MANY, has_second_address: true };
    run(builder.clone(), "tc", &[], transfers).unwrap();
    run(builder.names_uplinks(true), "tc", &[], transfers).unwrap();
}

#[test]
fn uplink_that_is_a_bridge() {
    check(routed().node_device(NodeDevice::Bridge), "tc", &[]).unwrap();
    check(bridged().node_device(NodeDevice::Bridge).bridge_nf_call(false), "tc", &[]).unwrap();
}

#[test]
fn macvlan_uplink() {
    check(routed().node_device(NodeDevice::Macvlan), "tc", &[]).unwrap();
}

#[test]
fn narrow_link_to_the_client() {
    check(routed().narrow(Narrow::Client), "tc", &[]).unwrap();
}

#[test]
fn narrow_link_between_nodes() {
    // With bridge-nf-call-ip6tables the kernel puts fragments of IPv6 together on their way from a bridge to the router
    // and forgets their size: too large for the link, and the pod cannot make them smaller.
    check(bridged().bridge_nf_call(false).narrow(Narrow::Nodes), "tc", &[]).unwrap();
}

#[test]
fn narrow_links_of_pods() {
    check(routed().narrow(Narrow::Pods), "tc", &[]).unwrap();
}

/// The same links in the other networks. For `bridge_nf_call` see above.
fn narrow(narrow: Narrow) -> Result<()> {
    for (builder, pod_datapath, args) in [
        (bridged().bridge_nf_call(false).overlay(Overlay::Vxlan), "tc", &[][..]),
        (routed().overlay(Overlay::Vxlan).offload(false), "socket", &["--xdp", "generic"]),
        (routed().second_uplink(SecondUplink::Asymmetric).rp_filter(2), "tc", &[]),
        (routed().second_uplink(SecondUplink::PolicyRouted).rp_filter(2), "tc", &[]),
        (bridged().node_device(NodeDevice::Bridge).bridge_nf_call(false), "tc", &[]),
        (routed().node_device(NodeDevice::Macvlan), "tc", &[]),
    ] {
        check(builder.narrow(narrow), pod_datapath, args)?;
    }
    Ok(())
}

#[test]
fn narrow_link_to_the_client_in_other_networks() -> Result<()> {
    narrow(Narrow::Client)
}

#[test]
fn narrow_links_of_pods_in_other_networks() -> Result<()> {
    narrow(Narrow::Pods)
}

/// The tc programs of a CNI, some there before the agent and some that come after it, go on seeing packets.
#[test]
fn foreign_programs() -> Result<()> {
    let mut scenario = Scenario::without_agents(bridged().nodes(2), "tc")?;
    // A program that passes packets on for good ends the chain of its kind: each node has one kind.
    let mut programs = foreign(&scenario, 0, Position::TcxLast)?;
    programs.extend(foreign(&scenario, 1, Position::Clsact)?);
    programs.extend(foreign(&scenario, 1, Position::TcxFirst)?);
    scenario.agents = scenario.cluster.start_agents(&["--pod-datapath", "tc"])?;
    programs.extend(foreign(&scenario, 0, Position::TcxFirst)?);
    for (agent, order) in scenario.agents.iter().zip([
        "ours, `counting` (tcx)",
        "ours, `counting` (tcx), `counting:[*fsobj]` (clsact, priority 49152)",
    ]) {
        agent.wait_for_log(&format!(
            "others have tc programs at the ingress of eth0; in the order they run: {order}"
        ))?;
        let warning =
            agent.wait_for_log("others have tc programs where packets leave to pods, at veth-a;")?;
        ensure!(warning.contains("WARN") && warning.contains(&format!(": {order}.")), "{warning}");
    }
    let before = programs.iter().map(ForeignProgram::packets).collect::<Result<Vec<_>>>()?;
    let mut failures = Failures::default();
    transfers(&scenario, Transfers { bytes: MANY, has_second_address: false }, &mut failures)?;
    for (program, before) in programs.iter().zip(before) {
        failures.case(program.name(), || {
            let packets = program.packets()? - before;
            ensure!(packets > 100, "{packets} packets");
            Ok(())
        });
    }
    conclude_with_conntrack(&scenario, failures)
}

/// Attaches to the uplink of a node and to its first pod's interface, in both directions.
fn foreign(scenario: &Scenario, node: usize, position: Position) -> Result<Vec<ForeignProgram>> {
    let node = scenario.cluster.node(node)?;
    let attach = |(device, is_ingress)| {
        ForeignProgram::attach(&node.host.netns, device, is_ingress, position, &node.bpffs)
    };
    [("eth0", true), ("eth0", false), ("veth-a", true), ("veth-a", false)].map(attach).into_iter().collect()
}
