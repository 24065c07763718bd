//! The counts at a point in time.

use std::{collections::HashMap, time::Instant};

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::{
        counter::Counter,
        event::{EventFilter, RateKey},
        flow::flags,
        id::Id,
    },
};

use crate::datapath::{
    flows::{FlowMap, FlowTable as _},
    maps::{self, MapFamily},
    pins::Pins,
    verdict::mask,
    watch::Watch,
};

/// Flows that are read at once.
const SLICE: usize = 4096;

/// Everything that is counted.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) rates: HashMap<RateKey, u64>,
    pub(super) counters: HashMap<Counter, u64>,
    /// Flows by service port.
    pub(super) flows: HashMap<Id, u64>,
}

/// Takes samples.
pub(super) struct Sampler {
    pins: Pins,
    watch: Watch,
}

impl Sampler {
    /// Counts from now on.
    pub(super) fn start(pins: Pins) -> Result<Self> {
        let filter = EventFilter { decisions: mask(&[]), counts: 1, ..EventFilter::default() };
        let watch = Watch::start(&pins, filter)?;
        Ok(Self { pins, watch })
    }

    pub(super) fn sample(&self) -> Result<Sample> {
        self.watch.check()?;
        let mut flows = HashMap::new();
        count_flows::<V4>(&self.pins, &mut flows)?;
        count_flows::<V6>(&self.pins, &mut flows)?;
        Ok(Sample {
            at: Instant::now(),
            rates: self.watch.rates()?,
            counters: maps::counters(&self.pins)?.into_iter().collect(),
            flows,
        })
    }
}

/// A flow has two entries; the one for requests counts.
fn count_flows<F: MapFamily>(pins: &Pins, counts: &mut HashMap<Id, u64>) -> Result<()> {
    for mut map in FlowMap::<F>::open(pins)? {
        let mut from = None;
        // A map that changes is not walked for ever.
        for _ in 0..=map.capacity() as usize / SLICE * 2 {
            let (entries, next) = map.slice(from, SLICE)?;
            for (_, flow) in entries.iter().filter(|(_, flow)| flow.flags & flags::REVERSE == 0) {
                *counts.entry(flow.service).or_default() += 1;
            }
            if next.is_none() {
                break;
            }
            from = next;
        }
    }
    Ok(())
}
