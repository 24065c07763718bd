//! Connections while the maps of flows grow: none is lost, new or old, and the next agent completes what a killed one began.
//! Needs root.
//!
//! Set-up: two nodes with two routed pods each, `--pod-datapath tc`; short connections through a node and from one of its pods.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_agent::datapath::pins::Pins;
use proxy_common::layout::by_use::{CURRENT, PREVIOUS};
use proxy_harness::{
    cluster::{Cluster, Host, until},
    traffic::{Entry, HOST_NETWORK, Scenario, WEB},
};
use proxy_load::{Attempts, Held, Tally, Transport};
use proxy_sys::bpf::{
    map::{MapInfo, MapKind, create, inner, inner_id, map_info, set_inner},
    open_pinned,
};

/// Connections of each kind that stay, and are silent meanwhile.
const HELD: usize = 50;
/// Clients of each kind that connect again and again.
const CLIENTS: usize = 16;
/// Enough for a busy machine to open thousands of connections.
const SOON: Duration = Duration::from_secs(60);

/// How many entries the map of confirmed IPv4 flows has room for.
fn capacity(host: &Host) -> Result<u64> {
    const METRIC: &str = "proxy_agent_map_capacity{map=\"flows_v4\"} ";
    let text = host.netns.get("127.0.0.1:10249", "/metrics")?.body;
    let line = text.lines().find_map(|line| line.strip_prefix(METRIC));
    line.context("no capacity")?.trim().parse().context("the capacity is no number")
}

fn held(scenario: &Scenario, from: &Host, entry: Entry, service: u8) -> Result<Vec<Held>> {
    let to = scenario.target(entry, service, true)?;
    let what = format!("{} -> {entry} ({to})", from.name);
    from.netns.run(|| (0..HELD).map(|_| Held::open(to, &what)).collect())
}

fn attempts(scenario: &Scenario, entry: Entry) -> Result<Attempts> {
    let SocketAddr::V4(to) = scenario.target(entry, WEB, true)? else { bail!("not an IPv4 address") };
    let mut attempts = Attempts::new(Transport::TcpClientCloses, to);
    // Less than what a lost SYN takes to be sent again, 1 s, and a busy machine's pause.
    attempts.patience = Duration::from_millis(900);
    Ok(attempts)
}

/// Connects through the node and from a pod for a while, until a condition holds.
fn connect_until(scenario: &Scenario, what: &str, condition: impl Fn() -> Result<bool>) -> Result<Tally> {
    let cluster = &scenario.cluster;
    let ways = [(&cluster.client, Entry::NodePort(0)), (cluster.pod("pod-1a")?, Entry::ClusterIp)];
    let mut all = Tally::default();
    let deadline = Instant::now() + SOON;
    while !condition()? {
        ensure!(Instant::now() < deadline, "{what}: not after {SOON:?} and {all}");
        let tallies: Vec<Result<Tally>> = thread::scope(|scope| {
            let run = |(from, entry): (&Host, Entry)| {
                let attempts = attempts(scenario, entry)?;
                from.netns.run(|| Ok(attempts.closed_loop(CLIENTS, Duration::from_millis(500))?))
            };
            let running: Vec<_> = ways.map(|way| scope.spawn(move || run(way))).into_iter().collect();
            let panicked = || Err(anyhow::anyhow!("a client panicked"));
            running.into_iter().map(|client| client.join().unwrap_or_else(|_| panicked())).collect()
        });
        for tally in tallies {
            all.join(tally?);
        }
    }
    ensure!(all.failures.total() == 0, "{what}: {all}, first: {:?}", all.first_failure);
    Ok(all)
}

/// Does what an agent does that is killed before it copies an entry.
fn begin_to_replace(scenario: &Scenario) -> Result<OwnedFd> {
    let slots = open_pinned(&Pins::new(&scenario.cluster.node(0)?.bpffs).map("flows_v4"))?;
    let current = inner(slots.as_fd(), CURRENT)?.context("no current map")?;
    let MapInfo { key_size, value_size, max_entries, .. } = map_info(current.as_fd())?;
    let next = create(MapKind::LruHash, key_size as usize, value_size as usize, max_entries)?;
    set_inner(slots.as_fd(), PREVIOUS, current.as_fd())?;
    set_inner(slots.as_fd(), CURRENT, next.as_fd())?;
    Ok(slots)
}

#[test]
fn connections_do_not_notice_that_maps_grow() -> Result<()> {
    let mut scenario = Scenario::start(Cluster::builder().nodes(2), "tc", &[])?;
    let node = scenario.cluster.node(0)?.host.clone();
    let small = capacity(&node)?;
    let mut silent = Vec::new();
    for (from, entry, service) in [
        (&scenario.cluster.client, Entry::NodePort(0), WEB),
        (&scenario.cluster.client, Entry::NodePort(0), HOST_NETWORK),
        (scenario.cluster.pod("pod-1a")?, Entry::ClusterIp, WEB),
    ] {
        silent.extend(held(&scenario, from, entry, service)?);
    }
    let tally = connect_until(&scenario, "the map grows", || Ok(capacity(&node)? > small))?;
    println!("{tally}");
    let large = capacity(&node)?;
    silent.iter_mut().for_each(Held::ask);

    // A restart keeps the map, and its flows.
    scenario.agents[0].kill()?;
    silent.iter_mut().for_each(Held::ask);
    let slots = begin_to_replace(&scenario)?;
    silent.iter_mut().take(HELD / 2).for_each(Held::ask);
    scenario.agents[0].start()?;
    until(SOON, "entries to be copied", || Ok(inner_id(slots.as_fd(), PREVIOUS)?.is_none().then_some(())))?;
    ensure!(capacity(&node)? == large, "the map is of another size");
    silent.iter_mut().for_each(Held::ask);
    let lost: Vec<_> = silent.iter().filter_map(Held::lost).collect();
    ensure!(lost.is_empty(), "{} of {} lost: {:#?}", lost.len(), 3 * HELD, lost.first());
    Ok(())
}
