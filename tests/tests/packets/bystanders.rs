//! Packets of no frontend and no flow come out of every program as they went in. Needs root.
//!
//! `cargo xtask nightly` runs millions; a failure names the number that brings it back: `PROXY_AGENT_RANDOM_SEED=<number>`.

use anyhow::Result;
use proxy_common::{V4, V6};
use proxy_packets::{
    PacketFamily,
    random::{Passed, Plan, bystanders},
};

const PACKETS: usize = 50_000;
const SEED: u64 = 1;

fn packet_of_bystanders<F: PacketFamily>() -> Result<()> {
    let plan = Plan::from_env(PACKETS, SEED)?;
    let Passed { packets, runs, flows, .. } = bystanders::<F>(plan)?;
    assert!(flows >= 2_000 && runs > packets, "{packets} packets, {runs} runs, {flows} flows");
    Ok(())
}

#[test]
fn packet_of_bystanders_v4() -> Result<()> {
    packet_of_bystanders::<V4>()
}

#[test]
fn packet_of_bystanders_v6() -> Result<()> {
    packet_of_bystanders::<V6>()
}
