//! `bench_sync sync`: how fast the maps follow the API server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use proxy_figures::{Part, Unit};

use crate::{
    calls, changes,
    cluster_objects::ClusterObjects,
    fixture::Fixture,
    objects::{Size, grouped},
    report::Report,
};

/// Measured changes of a kind, in each run.
const CHANGES: usize = 200;
/// Created services of a kind, in each run.
const CREATIONS: usize = 50;

const METHOD: &str = "\
The release build of the agent, on a CPU of its own, in a network namespace with an API server on the other CPU. The node has an \
IPv4 address and no IPv6 address. The server \
speaks HTTP without TLS and grants streaming lists; they are encoded before, with the metadata that real objects have. Each \
service is a ClusterIP with one port and one EndpointSlice. The benchmark writes the events to the connection and looks at \
the agent's maps, mapped into memory, without a pause; what they hold in the end is compared with what was sent.

- *Cold start*: nothing is pinned. From the start of the process, and from when the last byte of both lists had been taken by \
the kernel, until the last service has its frontend and its endpoints in the maps; until the socket hooks are attached, too, so \
that it is served to pods and the node; and until `/healthz` says 200, when packets are served.
- *Warm restart*: the agent was killed, and the endpoints of one service changed since. From the start of the process until \
the maps show that, and until `/healthz` says 200.
- *One change*: an endpoint of a service is replaced; until the word that publishes the service's endpoints is another one. \
*Under churn*, another service changes every millisecond, just before the measured one as well. CPU time is that of the whole \
process per change, without what it takes at rest.
- *New service*: a Service and its EndpointSlice, until its frontend is in the map with all endpoints. CPU time per creation or \
deletion.
- *Rolling update*: a tenth of all endpoints is replaced, in one event per service, all sent at once.
- *System calls* are counted by strace, in changes that are not timed: everything that the process does meanwhile.";

/// The results of one run, by table, row and column.
type Measured = BTreeMap<(usize, String, &'static str), f64>;

/// Tables in the order of the document: title, unit.
const TABLES: [(&str, Unit); 7] = [
    ("Cold start", Unit::Seconds),
    ("Warm restart", Unit::Seconds),
    ("One change of an endpoint", Unit::Microseconds),
    ("New service", Unit::Microseconds),
    ("Rolling update of 10 % of all endpoints", Unit::Seconds),
    ("Rolling update: CPU time per event", Unit::Microseconds),
    ("System calls per change of an endpoint", Unit::Count),
];

pub(crate) fn run(runs: usize, sizes: &[Size]) -> Result<Part> {
    let fixture = Fixture::new()?;
    fixture.set_ipv6(false)?;
    let mut report = Report::new("sync", METHOD, &TABLES);
    for size in sizes {
        for run in 0..runs {
            let last = run + 1 == runs;
            let measured = measure(&fixture, *size, last).with_context(|| format!("{size} endpoints"))?;
            for ((table, row, column), value) in measured {
                report.add(table, &row, column, value);
            }
            eprintln!("sync: {size} endpoints, run {} of {runs}", run + 1);
        }
    }
    targets(&mut report, sizes);
    Ok(report.part())
}

fn measure(fixture: &Fixture, size: Size, count_calls: bool) -> Result<Measured> {
    let mut found = Measured::new();
    let row = size.to_string();
    let mut cluster_objects = ClusterObjects::new(fixture, size);
    fixture.clean_up()?;

    let agent = fixture.start()?;
    let mut maps = fixture.maps(&agent)?;
    let (programmed, ids) = cluster_objects.until_programmed(&agent, &mut maps)?;
    let served = agent.until("socket hooks", || Ok(fixture.serves_sockets()?.then(Instant::now)))?;
    let ready = agent.until_healthy()?;
    let cpu = agent.cpu()?;
    cluster_objects.check(&mut maps, &ids)?;
    let (asked, last_byte) = (fixture.api.first_asked(), fixture.api.last_byte());
    let (asked, last_byte) = (asked.context("no list was asked for")?, last_byte.context("nor was it sent")?);
    let mut cold = |column, time: Duration| found.insert((0, row.clone(), column), time.as_secs_f64());
    cold(REQUEST, asked - agent.started);
    cold(PROGRAMMED, programmed - agent.started);
    cold(SERVED, served - agent.started);
    cold(READY, ready - agent.started);
    cold(AFTER_LAST_BYTE, programmed.saturating_duration_since(last_byte));
    cold(CPU_COLD, cpu);

    for (what, churn) in [("idle", false), ("under churn", true)] {
        let changes =
            changes::endpoints((fixture, &agent, &mut maps), &mut cluster_objects, &ids, CHANGES, churn)?;
        let row = format!("{row}, {what}");
        found.insert((2, row.clone(), P50), changes.quantile(0.5));
        found.insert((2, row.clone(), P99), changes.quantile(0.99));
        found.insert((2, row, CPU), changes.cpu);
    }
    for (what, node_ports) in [("ClusterIP", false), ("NodePort", true)] {
        let changes =
            changes::creations((fixture, &agent, &mut maps), &cluster_objects, CREATIONS, node_ports)?;
        let row = format!("{row}, {what}");
        found.insert((3, row.clone(), P50), changes.quantile(0.5));
        found.insert((3, row.clone(), P99), changes.quantile(0.99));
        found.insert((3, row, CPU), changes.cpu);
    }
    let rolling = changes::rolling((fixture, &agent, &mut maps), &mut cluster_objects, &ids)?;
    found.insert((4, row.clone(), "time"), rolling.time.as_secs_f64());
    found.insert((4, row.clone(), "CPU time"), rolling.cpu.as_secs_f64());
    let per_event = rolling.cpu.as_secs_f64() * 1e6 / rolling.events as f64;
    found.insert((5, row.clone(), "CPU time"), per_event);

    if count_calls
        && let Some(calls) = calls::per_change((fixture, &agent, &mut maps), &mut cluster_objects, &ids)?
    {
        let all_calls = calls.values().sum();
        found.insert((6, row.clone(), MAP_WRITES), calls::map_writes(&calls));
        found.insert((6, row.clone(), ALL_CALLS), all_calls);
        eprintln!("sync: {size} endpoints, system calls per change: {calls:.2?}");
    }

    drop(agent);
    let changed = cluster_objects.size.services / 2;
    cluster_objects.replace(fixture, changed, 1);
    cluster_objects.list(fixture);
    let agent = fixture.start()?;
    agent.until("what changed meanwhile", || {
        Ok(maps.check(ids[changed], &cluster_objects.services[changed]).ok())
    })?;
    found.insert((1, row.clone(), CHANGE_MEANWHILE), agent.started.elapsed().as_secs_f64());
    found.insert((1, row.clone(), READY), (agent.until_healthy()? - agent.started).as_secs_f64());
    found.insert((1, row.clone(), CPU_WARM), agent.cpu()?.as_secs_f64());
    cluster_objects.check(&mut maps, &ids)?;
    Ok(found)
}

const REQUEST: &str = "start to first list request";
const PROGRAMMED: &str = "start to last service in the map";
/// From a profile of a start (perf, 8 kHz, IPv4 alone).
const VERIFIER: &str = "of the CPU time of a start at c0717e5 (0.24 s), 54 % is in the kernel's `bpf_prog_load` (33 % the verifier's walk through the programs, 9 % \
`do_misc_fixups`), 21 % in making maps, whose LRU entries it allocates at once, 5 % in the agent's own code (`perf record`, 10 Services)";
const GROWTH: &str = "maps of services begin small, and the first lists need larger ones: programs for those are loaded before the rest is \
written";
const SERVED: &str = "start to last service served, by sockets";
const READY: &str = "start to ready";
const AFTER_LAST_BYTE: &str = "last byte to last service in the map";
const CPU_COLD: &str = "CPU time to ready";
const CHANGE_MEANWHILE: &str = "start to a change made meanwhile";
const CPU_WARM: &str = "CPU time to ready";
const P50: &str = "p50";
const P99: &str = "p99";
const CPU: &str = "CPU time per change";
const MAP_WRITES: &str = "bpf(), writing a map";
const ALL_CALLS: &str = "all";

fn targets(report: &mut Report, sizes: &[Size]) {
    for size in sizes {
        let row = size.to_string();
        let endpoints = size.services * size.endpoints;
        match endpoints {
            100 => {
                report.target(&format!("cold start, {row}"), 0, &row, SERVED, 0.15);
                report.because(VERIFIER);
                report.target(&format!("CPU time of a cold start, {row}"), 0, &row, CPU_COLD, 0.1);
                report.because(VERIFIER);
            }
            100_000 => {
                report.target(&format!("cold start, {row}"), 0, &row, PROGRAMMED, 1.5);
                report.target(
                    &format!("after the last byte of the lists, {row}"),
                    0,
                    &row,
                    AFTER_LAST_BYTE,
                    0.3,
                );
                report.because(GROWTH);
            }
            250_000 => {
                report.target(
                    &format!("cold start, {} endpoints", grouped(endpoints)),
                    0,
                    &row,
                    PROGRAMMED,
                    3.0,
                );
            }
            _ => {}
        }
        for what in ["idle", "under churn"] {
            let row = format!("{row}, {what}");
            report.target(&format!("one change, p50, {row}"), 2, &row, P50, 1000.0);
            report.target(&format!("one change, p99, {row}"), 2, &row, P99, 3000.0);
            report.target(&format!("CPU time per change, {row}"), 2, &row, CPU, 1000.0);
        }
        report.target(
            &format!("system calls for the map write of a change, {row}"),
            6,
            &row,
            MAP_WRITES,
            0.0,
        );
    }
    // Independent of their number: in proportion to it would be ten. Between runs it is 0.8 to 1.3, for the caches that a
    // change after a rest finds cold.
    let most = sizes.iter().max_by_key(|size| size.services);
    let is_comparable =
        |size: &&Size| size.services >= 1000 && most.is_some_and(|most| most.endpoints == size.endpoints);
    let least = sizes.iter().filter(is_comparable);
    if let (Some(most), Some(least)) = (most, least.min_by_key(|size| size.services))
        && most != least
    {
        let what = format!(
            "CPU time per change, {} services over {}",
            grouped(most.services),
            grouped(least.services)
        );
        let rows = [most, least].map(|size| format!("{size}, idle"));
        report.target_ratio(&what, 2, [&rows[0], &rows[1]], CPU, 1.5);
    }
}
