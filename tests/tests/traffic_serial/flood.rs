//! Attacks from outside: floods of SYNs from forged addresses, and forged resets. Clients of Services do not notice.
//!
//! Set-up: two nodes with two routed pods each, `--pod-datapath tc`, small flow maps; the client's machine sends SYNs
//! or resets from forged addresses while others connect.

use std::{
    collections::HashSet,
    net::{SocketAddr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_harness::{
    cluster::{Cluster, Host, until},
    traffic::{Entry, HOST_NETWORK, SINGLE, Scenario, WEB},
};
use proxy_load::{Attempts, Flood, Forger, Held, Tally, Transport, route_forged_sources};

/// The fewest that there are by default.
const MAX_FLOWS: u64 = 65_536;
const SYNS_PER_SECOND: u32 = 20_000;
const FLOOD: Duration = Duration::from_secs(5);
/// Enough for what a flood left in queues.
const SOON: Duration = Duration::from_secs(10);
/// New connections per second of each kind of client during the flood.
const NEW_PER_SECOND: u32 = 40;
/// Established connections of each kind; half of them talk during the flood, half are silent.
const HELD: usize = 40;

fn v4(scenario: &Scenario, entry: Entry, service: u8) -> Result<SocketAddrV4> {
    match scenario.target(entry, service, true)? {
        SocketAddr::V4(target) => Ok(target),
        SocketAddr::V6(target) => bail!("{target} is not an IPv4 address"),
    }
}

/// Opens connections from a place.
fn hold(scenario: &Scenario, from: &Host, entry: Entry, service: u8, count: usize) -> Result<Vec<Held>> {
    let to = scenario.target(entry, service, true)?;
    let what = format!("{} -> {entry} ({to})", from.name);
    from.netns.run(|| (0..count).map(|_| Held::open(to, &what)).collect())
}

/// New connections during the flood.
struct Clients<'s> {
    what: &'static str,
    from: &'s Host,
    attempts: Attempts,
    /// The part that must succeed within a second.
    least: f64,
}

impl<'s> Clients<'s> {
    fn all(scenario: &'s Scenario) -> Result<Vec<Self>> {
        let client = &scenario.cluster.client;
        let pod = scenario.cluster.pod("pod-1a")?;
        let all = [
            ("the flooded Service", client, Entry::NodePort(0), WEB, 0.95),
            ("another Service, local endpoint", client, Entry::NodePort(0), SINGLE, 0.99),
            ("another Service, remote endpoint", client, Entry::NodePort(0), HOST_NETWORK, 0.99),
            ("a cluster IP, from a pod", pod, Entry::ClusterIp, WEB, 0.95),
        ];
        let all = all.map(|(what, from, entry, service, least)| {
            let attempts = Attempts::new(Transport::TcpClientCloses, v4(scenario, entry, service)?);
            Ok(Self { what, from, attempts, least })
        });
        all.into_iter().collect()
    }

    fn connect(&self, time: Duration) -> Result<Tally> {
        self.from.netns.run(|| Ok(self.attempts.open_loop(NEW_PER_SECOND, time)?))
    }
}

/// Floods a target until the work is done.
fn during_flood<T>(cluster: &Cluster, to: SocketAddrV4, work: impl FnOnce() -> T) -> Result<(Flood, T)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood =
            scope.spawn(|| cluster.client.netns.run(|| Forger::new()?.flood(&[to], SYNS_PER_SECOND, &stop)));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        Ok((flood.join().ok().context("the flood panicked")??, done))
    })
}

#[test]
fn clients_do_not_notice_a_flood() {
    let args = ["--max-flows", &MAX_FLOWS.to_string()];
    let scenario = Scenario::start(Cluster::builder().nodes(2), "tc", &args).unwrap();
    let cluster = &scenario.cluster;
    route_forged_sources(cluster).unwrap();
    let pod = cluster.pod("pod-1a").unwrap();
    let mut talking = Vec::new();
    for (from, entry, service) in [
        // Backends here and on the other node; on the other node only; from a pod.
        (&cluster.client, Entry::NodePort(0), WEB),
        (&cluster.client, Entry::NodePort(0), HOST_NETWORK),
        (pod, Entry::ClusterIp, WEB),
    ] {
        talking.extend(hold(&scenario, from, entry, service, HELD).unwrap());
    }
    // Every other one, of each kind.
    let mut number = 0;
    let mut silent: Vec<_> = talking
        .extract_if(.., |_| {
            number += 1;
            number % 2 == 0
        })
        .collect();
    let clients = Clients::all(&scenario).unwrap();
    let flooded = v4(&scenario, Entry::NodePort(0), WEB).unwrap();
    let over = AtomicBool::new(false);
    let (flood, tallies) = during_flood(cluster, flooded, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    talking.iter_mut().for_each(Held::ask);
                    thread::sleep(Duration::from_millis(50));
                }
            });
            let running: Vec<_> =
                clients.iter().map(|clients| scope.spawn(|| clients.connect(FLOOD))).collect();
            let tallies: Vec<_> = running.into_iter().map(|running| running.join().unwrap()).collect();
            over.store(true, Ordering::Relaxed);
            tallies
        })
    })
    .unwrap();
    println!("{} SYNs, {:.0} a second", flood.sent, flood.rate());
    assert!(2 * flood.sent > MAX_FLOWS, "the flood was too small to fill the map: {flood:?}");

    silent.iter_mut().chain(&mut talking).for_each(Held::ask);
    let lost: Vec<_> = silent.iter().chain(&talking).filter_map(Held::lost).collect();
    let mut failures = Vec::new();
    if !lost.is_empty() {
        let some: Vec<_> = lost.iter().take(5).collect();
        failures.push(format!("{} of {} established connections lost: {some:#?}", lost.len(), 3 * HELD));
    }
    for (clients, tally) in clients.iter().zip(tallies) {
        let tally = tally.unwrap();
        println!("{}: {tally}", clients.what);
        if tally.success() < clients.least {
            failures.push(format!("{}: {tally}", clients.what));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // And then, once queues have drained, all is as before.
    for clients in &clients {
        until(SOON, &format!("all to be as before, {}", clients.what), || {
            let tally = clients.connect(Duration::from_millis(250))?;
            Ok((tally.failures.total() == 0).then_some(()))
        })
        .unwrap();
    }
}

/// Idle connections that forged resets are about, half with endpoints on either node.
const IDLE: usize = 8;
/// Forged resets of each connection.
const RESETS: u32 = 400;

#[test]
fn forged_resets_end_no_connection() {
    let scenario = Scenario::start(Cluster::builder().nodes(2), "tc", &[]).unwrap();
    let client = &scenario.cluster.client;
    for service in [SINGLE, HOST_NETWORK] {
        let to = v4(&scenario, Entry::NodePort(0), service).unwrap();
        let mut idle = hold(&scenario, client, Entry::NodePort(0), service, IDLE).unwrap();
        let ends: Vec<_> = idle.iter().map(|held| held.local().unwrap()).collect();
        let closed = || {
            let living = living_flows(&scenario, to).unwrap();
            ends.iter().filter(|end| !living.contains(*end)).count()
        };
        assert_eq!(closed(), 0, "to {to}, before there was any reset");
        client
            .netns
            .run(|| {
                let forger = Forger::new()?;
                for end in &ends {
                    let SocketAddr::V4(end) = *end else { bail!("{end} is not an IPv4 address") };
                    for number in 0..RESETS {
                        // All over the sequence space. The endpoint takes only the one that it expects next.
                        forger.reset(end, to, number.wrapping_mul(u32::MAX / RESETS))?;
                    }
                }
                Ok(())
            })
            .unwrap();
        // Closed connections go after seconds of silence, or a minute: too long to wait for here.
        assert_eq!(closed(), 0, "of {IDLE} idle connections to {to} count as closed");
        idle.iter_mut().for_each(Held::ask);
        let lost: Vec<_> = idle.iter().filter_map(Held::lost).collect();
        assert!(lost.is_empty(), "{lost:#?}");
    }
}

/// Clients' ends of flows to a target that stay for an hour without a packet, as established ones do.
fn living_flows(scenario: &Scenario, to: SocketAddrV4) -> Result<HashSet<SocketAddr>> {
    let text = scenario.agents[0].debug(&["flows", "--output", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let flows = json.as_array().context("no list of flows")?;
    let mut living = HashSet::new();
    for flow in flows.iter().filter(|flow| flow["vip"] == to.to_string()) {
        let expires = flow["expiresSeconds"].as_u64().with_context(|| format!("no end: {flow}"))?;
        if expires >= 3600 {
            living.insert(flow["client"].as_str().context("no client")?.parse()?);
        }
    }
    ensure!(!flows.is_empty(), "no flows");
    Ok(living)
}
