//! Metrics, in OpenMetrics text format. Names beginning with `kubeproxy_` are those of kube-proxy, so that its dashboards work.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::MapInfo;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};
use tokio::sync::watch;

use crate::{
    datapath::{Hook, maps, pins::Pins, services::Usage},
    source::SourceState,
};

/// A label set of one label.
type Label = [(&'static str, &'static str); 1];

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

/// Everything that is counted and measured. Share it in an `Arc`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    duration: Family<Label, Histogram>,
    last_applied: Family<Label, Gauge<f64, AtomicU64>>,
    apply_errors: Counter,
    service_ports: Gauge,
    frontends: Gauge,
    backends: Gauge,
    map_entries: Family<Label, Gauge>,
    hook_failures: Gauge,
    hooks: Arc<Mutex<Vec<Hook>>>,
}

impl Metrics {
    /// Nothing counted yet. What the programs count is read from the pinned maps at each scrape.
    pub fn new(pins: Pins, source: watch::Receiver<SourceState>) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15))),
            last_applied: Family::default(),
            apply_errors: Counter::default(),
            service_ports: Gauge::default(),
            frontends: Gauge::default(),
            backends: Gauge::default(),
            map_entries: Family::default(),
            hook_failures: Gauge::default(),
            hooks: Arc::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "How long it took to bring a batch of changes into the data path",
            metrics.duration.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When changes were brought into the data path last",
            metrics.last_applied.clone(),
        );
        registry.register(
            "proxy_agent_apply_errors",
            "Batches of changes that could not be brought into the data path",
            metrics.apply_errors.clone(),
        );
        registry.register(
            "proxy_agent_service_ports",
            "Service ports served, counted per address family",
            metrics.service_ports.clone(),
        );
        registry.register(
            "proxy_agent_frontends",
            "Addresses and node ports served",
            metrics.frontends.clone(),
        );
        registry.register("proxy_agent_backends", "Endpoints of service ports", metrics.backends.clone());
        registry.register(
            "proxy_agent_map_entries",
            "Entries used of a map that the agent fills",
            metrics.map_entries.clone(),
        );
        registry.register(
            "proxy_agent_hook_failures",
            "Programs that are not attached where they should be",
            metrics.hook_failures.clone(),
        );
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("proxy_agent_build", "The agent itself", version);
        registry.register_collector(Box::new(AtScrape { pins, source, hooks: metrics.hooks.clone() }));
        metrics
    }

    /// A batch of changes was applied; both families are applied together.
    pub fn applied(&self, took: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for family in ["IPv4", "IPv6"] {
            let label = [("ip_family", family)];
            self.duration.get_or_create(&label).observe(took.as_secs_f64());
            self.last_applied.get_or_create(&label).set(now.as_secs_f64());
        }
    }

    /// A batch could not be applied, or not all of it.
    pub fn failed(&self) {
        self.apply_errors.inc();
    }

    /// How much there is in the maps now.
    pub fn set_usage(&self, usage: &Usage) {
        self.service_ports.set(usage.service_ports.into());
        self.backends.set(usage.backends.into());
        self.frontends.set(i64::try_from(usage.frontends).unwrap_or(i64::MAX));
        let [v4, v6] = usage.slots;
        for (map, entries) in [("names", usage.service_ports), ("backends_v4", v4), ("backends_v6", v6)] {
            self.map_entries.get_or_create(&[("map", map)]).set(entries.into());
        }
    }

    /// What is attached now, and how many programs could not be.
    pub fn set_hooks<'h>(&self, attached: impl IntoIterator<Item = &'h Hook>, failed: usize) {
        *self.hooks.lock().unwrap_or_else(PoisonError::into_inner) = attached.into_iter().cloned().collect();
        self.hook_failures.set(i64::try_from(failed).unwrap_or(i64::MAX));
    }

    /// All metrics as text.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What is looked up at each scrape.
#[derive(Debug)]
struct AtScrape {
    pins: Pins,
    source: watch::Receiver<SourceState>,
    hooks: Arc<Mutex<Vec<Hook>>>,
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn hooks_and_usage_are_those_of_now() {
        let (_, source) = watch::channel(SourceState::default());
        let metrics = Metrics::new(Pins::new(Path::new("/nowhere")), source);
        let hook = |at: &str| Hook { at: at.into(), program: "uplink_ingress".into(), how: "tcx" };
        metrics.set_hooks(&[hook("eth0"), hook("eth1")], 1);
        metrics.set_hooks(&[hook("eth1")], 0);
        metrics.set_usage(&Usage { service_ports: 2, backends: 3, slots: [5, 0], frontends: 4 });
        let text = metrics.encode().unwrap();
        for line in [
            "proxy_agent_hooks{at=\"eth1\",program=\"uplink_ingress\",how=\"tcx\"} 1",
            "proxy_agent_hook_failures 0",
            "proxy_agent_service_ports 2",
            "proxy_agent_frontends 4",
            "proxy_agent_map_entries{map=\"backends_v4\"} 5",
            "proxy_agent_source_synced 0",
            concat!("proxy_agent_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is missing in:\n{text}");
        }
        assert!(!text.contains("eth0"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
