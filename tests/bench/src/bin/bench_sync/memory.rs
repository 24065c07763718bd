//! `bench_sync memory`: the memory of the agent and its maps.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use proxy_figures::{Part, Unit};

use crate::{
    changes,
    cluster_objects::ClusterObjects,
    fixture::{Agent, Fixture},
    maps,
    objects::Size,
    report::Report,
};

const METHOD: &str = "\
The same agent and API server as in `sync`. Resident memory of the agent's process as the kernel tells it: the most at any time \
(`VmHWM`), after the lists, and after a tenth of all endpoints was replaced, each after three seconds of rest. *Heap* is what is \
its own (`RssAnon`). *Mapped* are the binary, and those of the kernel's maps that the agent writes through a mapping: they are \
made at their full size, whatever they hold, are part of the process' `VmRSS`, and are counted with the maps. Maps are what the \
kernel accounts for them (`memlock` of each): arrays and LRU maps whole, hashes by what is in them. The node has an IPv4 address \
on a veth pair and no IPv6 address, so its maps of IPv6 have one entry; in the row *dual stack* it has both.";

const TABLES: [(&str, Unit); 3] =
    [("Agent", Unit::Mebibytes), ("Agent, mapped", Unit::Mebibytes), ("Maps", Unit::Mebibytes)];

const PEAK: &str = "most";
const HEAP: &str = "heap after the lists";
const LATER: &str = "heap after a rolling update";
const STEADY: &str = "resident, without mapped maps";
const RESIDENT: &str = "VmRSS";
const ALL_MAPS: &str = "all";

pub(crate) fn run(runs: usize, sizes: &[Size]) -> Result<Part> {
    let fixture = Fixture::new()?;
    let mut report = Report::new("memory", METHOD, &TABLES);
    fixture.set_ipv6(false)?;
    for size in sizes {
        let row = size.to_string();
        repeat(&fixture, *size, &row, &mut report, runs)?;
        match (size.services, size.endpoints) {
            (10, 10) => {
                report.target(
                    &format!("resident memory of the agent, all of it, {row}"),
                    1,
                    &row,
                    RESIDENT,
                    20.0,
                );
                report.target(&format!("most memory of the agent, {row}"), 0, &row, PEAK, 30.0);
                report.target(&format!("memory of the maps, {row}"), 2, &row, ALL_MAPS, 24.0);
            }
            (10_000, 10) => {
                report.target(&format!("resident memory of the agent, {row}"), 0, &row, STEADY, 60.0);
            }
            _ => {}
        }
    }
    fixture.set_ipv6(true)?;
    if let Some(size) = sizes.iter().find(|size| (size.services, size.endpoints) == (10, 10)) {
        repeat(&fixture, *size, &format!("{size}, dual stack"), &mut report, runs)?;
    }
    Ok(report.part())
}

fn repeat(fixture: &Fixture, size: Size, row: &str, report: &mut Report, runs: usize) -> Result<()> {
    for run in 0..runs {
        measure(fixture, size, row, report).with_context(|| format!("{row} endpoints"))?;
        eprintln!("memory: {row} endpoints, run {} of {runs}", run + 1);
    }
    Ok(())
}

fn measure(fixture: &Fixture, size: Size, row: &str, report: &mut Report) -> Result<()> {
    let mut cluster_objects = ClusterObjects::new(fixture, size);
    fixture.clean_up()?;
    let agent = fixture.start()?;
    let mut open = fixture.maps(&agent)?;
    let (_, ids) = cluster_objects.until_programmed(&agent, &mut open)?;
    let steady = at_rest(&agent)?;
    changes::rolling((fixture, &agent, &mut open), &mut cluster_objects, &ids)?;
    let later = at_rest(&agent)?;

    let sizes = maps::memory(fixture.bpffs()?)?;
    let of = |is: &dyn Fn(&str) -> bool| -> f64 {
        mebibytes(sizes.iter().filter(|(name, _)| is(name)).map(|(_, bytes)| bytes).sum())
    };
    let is_flow = |name: &str| OF_CONNECTIONS.iter().any(|kind| name.starts_with(kind));
    let is_mapped = |name: &str| MAPPED.contains(&name);
    let maps_in_process = of(&is_mapped);
    report.add(0, row, PEAK, mebibytes(later.peak));
    report.add(0, row, HEAP, mebibytes(steady.anonymous));
    report.add(0, row, LATER, mebibytes(later.anonymous));
    report.add(0, row, STEADY, (mebibytes(later.resident) - maps_in_process).max(mebibytes(later.anonymous)));
    report.add(1, row, RESIDENT, mebibytes(later.resident));
    report.add(1, row, "mapped", mebibytes(later.mapped));
    report.add(2, row, "services and endpoints", of(&|name| !is_flow(name)));
    report.add(2, row, "connections", of(&is_flow));
    report.add(2, row, ALL_MAPS, of(&|_| true));
    Ok(())
}

/// Maps of connections: the beginnings of their names.
const OF_CONNECTIONS: [&str; 10] = [
    "flows",
    "pending",
    "outbound",
    "sockets",
    "connected",
    "udp_peers",
    "peer_cells",
    "affinity",
    "fragments",
    "frag_queue",
];

/// Maps that the agent maps into its memory.
const MAPPED: [&str; 7] = [
    "backend_states",
    "reply_filter",
    "backend_ids",
    "backends_v4",
    "backends_v6",
    "backend_sets",
    "vip_filter",
];

fn at_rest(agent: &Agent) -> Result<crate::fixture::Memory> {
    thread::sleep(Duration::from_secs(3));
    agent.memory()
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
