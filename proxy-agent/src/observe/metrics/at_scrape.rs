//! Metrics that are read at each scrape, rather than kept.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::sync::watch;

use crate::{
    PLATFORM,
    datapath::{Hook, maps, pins::Pins},
    source::{SourceState, WatchState},
};

/// Maps whose capacity is shown.
const MAPS: [&str; 8] = [
    "backends_v4",
    "backends_v6",
    "flows_v4",
    "flows_v6",
    "frontends_v4",
    "frontends_v6",
    "service_names",
    "sockets_v4",
];

/// The collector of metrics that are read at each scrape.
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
        self.encode_watches(&mut encoder)?;
        self.encode_release(&mut encoder)?;
        self.encode_hooks(&mut encoder)?;
        self.encode_capacities(&mut encoder)?;
        self.encode_packets(&mut encoder)
    }
}

/// Hooks by place, program and means. A node may have a thousand pods, which come and go: they are one place.
fn counted(hooks: &[Hook]) -> BTreeMap<(&str, &str, &'static str), i64> {
    let mut counts = BTreeMap::new();
    for hook in hooks {
        let at = if hook.program.starts_with("pod_") { "pods" } else { hook.at.as_str() };
        *counts.entry((at, hook.program.as_str(), hook.how)).or_insert(0) += 1;
    }
    counts
}

impl AtScrape {
    fn encode_watches(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let state = self.source.borrow().clone();
        type Figure = fn(&WatchState) -> Option<u64>;
        let figures: [(&str, &str, MetricType, Figure); 6] = [
            ("proxy_agent_watch_synced", "1 when it was listed completely", MetricType::Gauge, |watch| {
                Some(watch.synced.into())
            }),
            (
                "proxy_agent_watch_last_event_timestamp_seconds",
                "Time of the source's last event for it",
                MetricType::Gauge,
                |watch| Some(watch.last_event?.duration_since(UNIX_EPOCH).ok()?.as_secs()),
            ),
            ("proxy_agent_watch_starts", "How often it was begun", MetricType::Counter, |watch| {
                Some(watch.starts)
            }),
            ("proxy_agent_watch_failures", "How often it failed", MetricType::Counter, |watch| {
                Some(watch.failures)
            }),
            (
                "proxy_agent_watch_silences",
                "How often it was made again because neither events nor bookmarks came",
                MetricType::Counter,
                |watch| Some(watch.silences),
            ),
            (
                "proxy_agent_watch_version_regressions",
                "How often the source went back to an older version: etcd was restored, or an API server is behind",
                MetricType::Counter,
                |watch| Some(watch.regressions),
            ),
        ];
        for (name, help, kind, figure) in figures {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (watch, state) in &state.watches {
                let Some(value) = figure(state) else { continue };
                let labels = [("watch", watch.as_str())];
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(family.encode_family(&labels)?)?,
                    _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
                        .encode(family.encode_family(&labels)?)?,
                }
            }
        }
        Ok(())
    }

    /// kube-proxy reports its release, which is that of its API server or nearly. Alerts compare it with other
    /// components; our own version would only set them off.
    fn encode_release(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let Some(release) = self.source.borrow().release.clone() else { return Ok(()) };
        let help = "The release of Kubernetes that the API server reports; proxy_agent_build_info has the agent's own";
        let mut family = encoder.encode_descriptor("kubernetes_build_info", help, None, MetricType::Gauge)?;
        let labels = [
            ("major", release.major.as_str()),
            ("minor", release.minor.as_str()),
            ("git_version", release.git_version.as_str()),
            ("compiler", "rustc"),
            ("platform", PLATFORM),
        ];
        ConstGauge::new(1i64).encode(family.encode_family(&labels)?)
    }

    fn encode_hooks(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Programs that are attached; those at pods' interfaces together";
        let mut family = encoder.encode_descriptor("proxy_agent_hooks", help, None, MetricType::Gauge)?;
        for ((at, program, how), count) in counted(&hooks) {
            let labels = [("at", at), ("program", program), ("how", how)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_capacities(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "Entries a map has room for";
        let mut family =
            encoder.encode_descriptor("proxy_agent_map_capacity", help, None, MetricType::Gauge)?;
        for map in MAPS {
            if let Some(capacity) = maps::capacity(&self.pins, map) {
                ConstGauge::new(i64::from(capacity)).encode(family.encode_family(&[("map", map)])?)?;
            }
        }
        Ok(())
    }

    fn encode_packets(&self, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
        let help = "What the programs counted; `proxy-agent debug counters` explains each event";
        let mut family = encoder.encode_descriptor("proxy_agent_packets", help, None, MetricType::Counter)?;
        // Without maps there are no values; other metrics and the log show why.
        for (counter, value) in maps::counters(&self.pins).unwrap_or_default() {
            let labels = [("event", counter.name())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
