//! All slices of load, in an order in which noise hits all variants alike.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use proxy_figures::quantile;

use crate::{
    services::{Where, services},
    setup::{From, Setup, Variant},
    wire::{Kind, Order},
};

/// A path through the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Path {
    ClusterIpLocal,
    ClusterIpRemote,
    NodePortLocal,
    NodePortRemote,
}

impl Path {
    pub(crate) fn from(self) -> From {
        match self {
            Self::ClusterIpLocal | Self::ClusterIpRemote => From::Pod,
            Self::NodePortLocal | Self::NodePortRemote => From::Client,
        }
    }

    pub(crate) fn to(self) -> Where {
        match self {
            Self::ClusterIpLocal | Self::NodePortLocal => Where::Local,
            Self::ClusterIpRemote | Self::NodePortRemote => Where::Remote,
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::ClusterIpLocal => "cluster IP, local backend",
            Self::ClusterIpRemote => "cluster IP, remote backend",
            Self::NodePortLocal => "nodePort, local backend",
            Self::NodePortRemote => "nodePort, remote backend",
        }
    }
}

/// A measurement, repeated in rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    /// How many services there are.
    pub(crate) services: usize,
    pub(crate) kind: Kind,
    pub(crate) path: Path,
}

/// One slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Operations per second, or bits.
    pub(crate) rate: f64,
    /// Operations, or bytes.
    pub(crate) done: f64,
    /// CPU time of the whole machine, in nanoseconds.
    pub(crate) busy: f64,
    /// How long until a connection stood: median and 99th percentile, in nanoseconds.
    pub(crate) connect: [f64; 2],
}

/// The samples of each row and variant, in the order of the rounds.
pub(crate) type Samples = BTreeMap<(Row, Variant), Vec<Sample>>;

/// The measurements, and their duration.
pub(crate) struct Plan {
    pub(crate) kinds: Vec<Kind>,
    pub(crate) paths: Vec<Path>,
    pub(crate) services: Vec<usize>,
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
}

/// Measures everything there is to measure with `services`.
pub(crate) fn measure(setups: &mut [Setup], plan: &Plan) -> Result<Samples> {
    let mut samples = Samples::new();
    for (index, &count) in plan.services.iter().enumerate() {
        let all = services(count);
        for setup in &mut *setups {
            setup
                .set_services(&all)
                .with_context(|| format!("{}, {count} services", setup.variant.title()))?;
        }
        // How many services there are matters for new flows only.
        let matters = |kind: &&Kind| index == 0 || matches!(kind, Kind::Short | Kind::Datagram);
        let kinds = plan.kinds.iter().filter(matters);
        let paths = kinds.flat_map(|&kind| plan.paths.iter().map(move |&path| (kind, path)));
        let rows: Vec<_> = paths.map(|(kind, path)| Row { services: count, kind, path }).collect();
        // Neighbours are found, caches filled; and everything works, or it ends here.
        for row in &rows {
            for setup in &mut *setups {
                sample(setup, *row, Duration::from_millis(20))?;
            }
        }
        for round in 0..plan.rounds {
            for row in &rows {
                // The first setup changes with each round.
                for turn in 0..setups.len() {
                    let at = (turn + round) % setups.len();
                    let setup = &mut setups[at];
                    let sample = sample(setup, *row, plan.slice)?;
                    samples.entry((*row, setup.variant)).or_default().push(sample);
                }
            }
        }
    }
    Ok(samples)
}

fn sample(setup: &mut Setup, row: Row, time: Duration) -> Result<Sample> {
    let Row { kind, path, .. } = row;
    let (from, to) = (path.from(), path.to());
    let (to, port) = match from {
        _ if setup.variant.is_direct() => (to.endpoints().collect(), kind.target_port()),
        From::Pod => (vec![to.cluster_ip()], kind.service_port()),
        From::Client => (vec![setup.cluster.node(0)?.host.v4], to.node_port(kind.service_port())),
    };
    let order = Order { kind, to, port, milliseconds: time.as_millis() as u64 };
    // Work that the last slice left to do must not count for this one.
    thread::sleep(Duration::from_millis(2));
    let (begin, before) = (Instant::now(), idle()?);
    let mut outcome = setup.run(from, &order)?;
    let cpus = thread::available_parallelism()?.get() as f64;
    let busy = cpus * begin.elapsed().as_nanos() as f64 - (idle()? - before);
    let seconds = outcome.nanoseconds as f64 / 1e9;
    let unit = if kind == Kind::Bulk { 8.0 } else { 1.0 };
    outcome.connects.sort_unstable();
    let connects: Vec<_> = outcome.connects.iter().map(|nanoseconds| *nanoseconds as f64).collect();
    let done = outcome.done as f64;
    Ok(Sample {
        rate: done * unit / seconds,
        done,
        busy,
        connect: [quantile(&connects, 0.5), quantile(&connects, 0.99)],
    })
}

/// How long the machine's CPUs were idle or not ours, in nanoseconds.
fn idle() -> Result<f64> {
    const NANOSECONDS_PER_TICK: f64 = 1e7;
    let text = fs::read_to_string("/proc/stat")?;
    let fields = text.lines().next().context("/proc/stat is empty")?.split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.map(str::parse).collect::<Result<_, _>>()?;
    // idle, iowait, steal
    Ok([3, 4, 7].into_iter().filter_map(|field| ticks.get(field)).sum::<f64>() * NANOSECONDS_PER_TICK)
}
