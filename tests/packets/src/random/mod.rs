//! The programs in the kernel against the core run natively over the same tables: random packets, same answers.
//!
//! A run of some hundred steps depends on its number only. One that fails is shortened, step by step, to those that it
//! takes, and printed with the number that brings it back.

mod bystanders;
mod comparison;
mod conversations;
mod fixture;
mod oracle;
mod replay;
mod shape;
mod steps;

use std::{
    env,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub use self::{
    bystanders::{Passed, bystanders},
    fixture::add_services,
};
use self::{
    comparison::{Comparison, Failure, Met},
    steps::{Random, Step, steps},
};
use super::{Node, Options, PacketFamily};

/// Steps of a run: it must be over before much time has passed in the kernel, where time cannot be held.
const STEPS: usize = 400;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Packets (and events between them).
    pub packets: usize,
    /// The number of the first run; the others count on from there.
    pub seed: u64,
}

impl Plan {
    /// This many packets from this seed on, unless the environment has other values:
    /// `PROXY_AGENT_RANDOM_PACKETS`, `PROXY_AGENT_RANDOM_SEED`.
    ///
    /// # Errors
    /// When these are no numbers.
    pub fn from_env(packets: usize, seed: u64) -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let value = env::var(name).ok();
            value.map(|text| text.parse().with_context(|| format!("{name}: `{text}`"))).transpose()
        };
        Ok(Self {
            packets: number("PROXY_AGENT_RANDOM_PACKETS")?.map_or(packets, |packets| packets as usize),
            seed: number("PROXY_AGENT_RANDOM_SEED")?.unwrap_or(seed),
        })
    }
}

/// The result.
#[derive(Clone, Debug)]
pub struct Report {
    /// Steps taken.
    pub steps: usize,
    /// How long it took, without making the node.
    pub took: Duration,
    /// How often each program gave each verdict.
    pub met: Vec<(String, u64)>,
    /// Differences that did not happen again; a few of them are chance.
    pub unrepeated: Vec<String>,
}

/// Makes a node, in a namespace that the calling thread enters, and compares.
///
/// `everything`: with everything switched on that can be.
///
/// # Errors
/// When kernel and core differ; the message has all that is needed to see it again.
pub fn compare<F: PacketFamily>(plan: Plan, everything: bool) -> Result<Report> {
    let options = Options {
        max_flows: 1 << 13,
        max_pending: 1 << 13,
        reject_with_reset: everything,
        idle: steps::IDLE,
        ..Options::default()
    };
    let node = Node::with(options, |v4, v6| {
        add_services(v4);
        add_services(v6);
        fixture::add_mtus(v4);
        fixture::add_mtus(v6);
        for settings in [&mut v4.settings, &mut v6.settings] {
            settings.external_cluster_ips = everything;
            settings.reset_removed_tcp = everything;
        }
    })?;
    let Node { mut kernel, mut v4, mut v6 } = node;
    match F::NUMBER {
        4 => runs(plan, everything, &mut Comparison::new(&mut kernel, &mut v4)?),
        _ => runs(plan, everything, &mut Comparison::new(&mut kernel, &mut v6)?),
    }
}

fn runs<F: PacketFamily>(plan: Plan, everything: bool, comparison: &mut Comparison<'_, F>) -> Result<Report> {
    let begin = Instant::now();
    let (mut met, mut taken, mut unrepeated) = (Met::new(), 0, Vec::new());
    for seed in plan.seed.. {
        if taken >= plan.packets {
            break;
        }
        let all: Vec<_> = steps::<F>(&mut Random::new(seed), STEPS).into_iter().enumerate().collect();
        if let Some(failure) = comparison.run(&all, &mut met)? {
            if !happens_again(comparison, &all)? {
                unrepeated.push(describe::<F>(seed, everything, &[], &failure));
                if unrepeated.len() > 2 + taken / STEPS / 100 {
                    bail!("differences that do not happen again:\n{}", unrepeated.join("\n"));
                }
                continue;
            }
            let (few, failure) = shorten(comparison, all, failure)?;
            bail!("{}", describe::<F>(seed, everything, &few, &failure));
        }
        taken += STEPS;
    }
    Ok(Report { steps: taken, took: begin.elapsed(), met: met.into_iter().collect(), unrepeated })
}

/// Whether a run fails again. By chance, or on a machine that is busy, the kernel may give a flow the port of one that
/// was idle for long, which then goes; in the core's tables that does not happen, or to another.
fn happens_again<F: PacketFamily>(
    comparison: &mut Comparison<'_, F>,
    steps: &[(usize, Step)],
) -> Result<bool> {
    const TIMES: usize = 3;
    for _ in 0..TIMES {
        if comparison.run(steps, &mut Met::new())?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Leaves steps out while it still fails: halves, quarters, and so on down to single ones.
fn shorten<F: PacketFamily>(
    comparison: &mut Comparison<'_, F>,
    mut steps: Vec<(usize, Step)>,
    mut failure: Failure,
) -> Result<(Vec<(usize, Step)>, Failure)> {
    if let Some(last) = failure.step {
        steps.retain(|(number, _)| *number <= last);
    }
    let mut length = steps.len().div_ceil(2);
    while length > 0 {
        let mut from = 0;
        while from < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(from..steps.len().min(from + length));
            match comparison.run(&fewer, &mut Met::new())? {
                Some(still) => (steps, failure) = (fewer, still),
                None => from += length,
            }
        }
        length /= 2;
    }
    Ok((steps, failure))
}

fn describe<F: PacketFamily>(
    seed: u64,
    everything: bool,
    steps: &[(usize, Step)],
    failure: &Failure,
) -> String {
    let list: Vec<_> = steps.iter().map(|(number, step)| format!("  {number}: {step:?}")).collect();
    let at = failure.step.map_or("at the end".to_owned(), |step| format!("at step {step}"));
    let settings = if everything { "everything switched on" } else { "default settings" };
    format!(
        "kernel and core differ {at} (IPv{}, {settings}; again with PROXY_AGENT_RANDOM_SEED={seed}):\n{}\nafter\n{}",
        F::NUMBER,
        failure.what,
        list.join("\n")
    )
}
