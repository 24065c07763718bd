//! The programs in the kernel against the core run natively over the same tables: same packets, same answers. Needs root.
//!
//! `cargo xtask nightly` runs a million packets of each family; here it is a few. A failure names the number that brings
//! it back: `PROXY_AGENT_RANDOM_SEED=<number> cargo xtask test packets --filter random`.

use anyhow::Result;
use proxy_common::{V4, V6, layout::counter::Counter};
use proxy_packets::{
    PacketFamily,
    random::{Plan, compare},
};

const PACKETS: usize = 20_000;
const SEED: u64 = 1;

fn packet_random<F: PacketFamily>(everything: bool) -> Result<()> {
    let plan = Plan::from_env(PACKETS, SEED)?;
    let report = compare::<F>(plan, everything)?;
    if plan.packets < PACKETS {
        return Ok(());
    }
    // The packets are worth something: every hook met all important kinds (twenty times and more, so that none is missing by
    // chance).
    let hooks = ["pod_ingress", "pod_egress", "uplink_ingress", "uplink_egress", "uplink_xdp"];
    let l3 = ["uplink_l3_ingress", "uplink_l3_egress"];
    let all = hooks.into_iter().chain(l3);
    let verdicts = |hook: &str| match hook {
        "pod_ingress" => vec!["Pass", "ToStack", "Bridge", "Hairpin", "Reject", "Echo", "Drop"],
        "pod_egress" => vec!["Pass", "ToStack"],
        "uplink_egress" => vec!["Pass", "ToStack", "Reject", "Reset", "Drop"],
        "uplink_l3_egress" => vec!["Pass"],
        "uplink_ingress" => vec!["Pass", "ToStack", "Redirect", "Reject", "Drop"],
        _ => vec!["Pass", "ToStack", "Redirect", "Drop"],
    };
    for hook in all {
        for verdict in verdicts(hook) {
            let name = format!("{hook}: {verdict}");
            assert!(report.met.iter().any(|(met, _)| *met == name), "never met {name}: {:?}", report.met);
        }
    }
    // Every part of a flow's life as well.
    for counter in [
        Counter::FlowNew,
        Counter::FlowConfirmed,
        Counter::FlowRepaired,
        Counter::ReplyToNode,
        Counter::ConnectionUnknown,
        Counter::AffinityKept,
        Counter::UndefinedPort,
        Counter::Unallocated,
        Counter::SourceDenied,
    ] {
        let name = format!("counted: {}", counter.name());
        assert!(report.met.iter().any(|(met, _)| *met == name), "never {name}: {:?}", report.met);
    }
    Ok(())
}

#[test]
fn packet_random_v4() -> Result<()> {
    packet_random::<V4>(false)
}

#[test]
fn packet_random_v6() -> Result<()> {
    packet_random::<V6>(false)
}

#[test]
fn packet_random_v4_with_everything_switched_on() -> Result<()> {
    packet_random::<V4>(true)
}

#[test]
fn packet_random_v6_with_everything_switched_on() -> Result<()> {
    packet_random::<V6>(true)
}
