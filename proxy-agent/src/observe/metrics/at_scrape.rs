//! What is looked up at each scrape, rather than kept.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::MapInfo;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::sync::watch;

use crate::{
    datapath::{Hook, maps, pins::Pins},
    source::SourceState,
};

/// Maps whose capacity is shown.
const MAPS: [&str; 8] = [
    "backends_v4",
    "backends_v6",
    "flows_v4",
    "flows_v6",
    "frontends_v4",
    "frontends_v6",
    "names",
    "sockets_v4",
];

/// What is looked up at each scrape.
#[derive(Debug)]
pub(super) struct AtScrape {
    pub(super) pins: Pins,
    pub(super) source: watch::Receiver<SourceState>,
    pub(super) hooks: Arc<Mutex<Vec<Hook>>>,
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let synced = ConstGauge::new(i64::from(self.source.borrow().is_synced()));
        synced.encode(encoder.encode_descriptor(
            "proxy_agent_source_synced",
            "1 when Services and EndpointSlices were listed completely",
            None,
            MetricType::Gauge,
        )?)?;
        self.encode_hooks(&mut encoder)?;
        self.encode_capacities(&mut encoder)?;
        self.encode_packets(&mut encoder)
    }
}

impl AtScrape {
    fn encode_hooks(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Programs that are attached";
        let mut family = encoder.encode_descriptor("proxy_agent_hooks", help, None, MetricType::Gauge)?;
        for hook in hooks.iter() {
            let labels = [("at", hook.at.as_str()), ("program", hook.program.as_str()), ("how", hook.how)];
            ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_capacities(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Entries a map has room for";
        let mut family =
            encoder.encode_descriptor("proxy_agent_map_capacity", help, None, MetricType::Gauge)?;
        for map in MAPS {
            if let Ok(info) = MapInfo::from_pin(self.pins.map(map)) {
                let capacity = ConstGauge::new(i64::from(info.max_entries()));
                capacity.encode(family.encode_family(&[("map", map)])?)?;
            }
        }
        Ok(())
    }

    fn encode_packets(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "What the programs counted; `proxy-agent debug counters` explains each event";
        let mut family = encoder.encode_descriptor("proxy_agent_packets", help, None, MetricType::Counter)?;
        // Without maps there is nothing to show, and that is said elsewhere.
        for (counter, value) in maps::counters(&self.pins).unwrap_or_default() {
            let labels = [("event", counter.name())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
