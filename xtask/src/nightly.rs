//! Tests that take longer than a change may wait for.

use std::{
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    build,
    fuzz::{self, FuzzArgs},
    setup,
    test::mount_bpffs,
    vm,
    workspace::{cargo, is_root, root, run, say, target_dir},
};

/// Arguments of `nightly`.
#[derive(Args)]
pub(crate) struct NightlyArgs {
    /// Random packets of each family; 0: none.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    packets: u64,
    /// For how long to run each fuzz target; 0: not at all.
    #[arg(long, value_name = "N", default_value_t = 180)]
    seconds: u32,
    /// How often the agents of clusters under load are ended and started again: in each of three clusters, each agent of
    /// them; and in two others, how often an agent takes over from a running one, and one with other layouts of maps from one that runs or ended.
    /// 0: never.
    #[arg(long, value_name = "N", default_value_t = 112)]
    restarts: usize,
    /// Leave out the virtual machines: every kernel, with everything that there is for it.
    #[arg(long)]
    without_machines: bool,
    /// Where the random packets begin. Default: the day's own.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// `cargo xtask nightly`.
pub(crate) fn main(args: &NightlyArgs) -> Result<()> {
    if !is_root() {
        bail!("this loads BPF programs into the kernel: run it as root");
    }
    // A part that fails keeps none of the others from being run.
    let reported = |result: Result<()>| result.inspect_err(|error| say(format!("error: {error:#}")));
    let packets = if args.packets > 0 { reported(random_packets(args)) } else { Ok(()) };
    let restarts = if args.restarts > 0 { reported(restarts(args.restarts)) } else { Ok(()) };
    let fuzzed = if args.seconds > 0 { fuzz::main(&FuzzArgs::every_target(args.seconds)) } else { Ok(()) };
    let machines = if args.without_machines { Ok(()) } else { reported(vm::whole()) };
    packets.and(restarts).and(fuzzed).and(machines)
}

fn random_packets(args: &NightlyArgs) -> Result<()> {
    build::programs(false)?;
    // A package alone, so that the agent is not built for it. Not optimised: most of the time is the kernel's, and the core
    // is to run with its overflow checks.
    let package = ["--package", "proxy-packets", "--bin", "random_packets"];
    run(cargo().args(["build", "--quiet"]).args(package))?;
    let days = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() / 86_400);
    // Far apart: each number is that of one short run, and a night has thousands.
    let seed = args.seed.unwrap_or_else(|| days() * 1_000_000);
    let mut command = Command::new(target_dir().join("debug/random_packets"));
    command.env("PROXY_AGENT_BPF_DIR", target_dir().join("bpf"));
    run(command.args(["--packets", &args.packets.to_string(), "--seed", &seed.to_string()]))
        .context("the message above names the seed that brings it back: `cargo xtask nightly --seed`")
}

/// No request is lost, and no health check fails, while agents are killed, ended, and taken over from.
fn restarts(rounds: usize) -> Result<()> {
    setup::tests()?;
    mount_bpffs()?;
    let built = build::for_some_tests(&["traffic"])?;
    let agent = built.get("proxy-agent").context("cargo has built no agent")?;
    let mut command = Command::new(built.get("traffic").context("cargo has built no `traffic`")?);
    command.args(["--test-threads=2", "no_request_is_lost", "agents_overlap", "connections_live_on"]);
    run(command
        .current_dir(root().join("tests"))
        .env("PROXY_AGENT_BIN", agent)
        .env("PROXY_TESTS_ROUNDS", rounds.to_string()))
}
