//! The metrics that kube-proxy has too, under its names and with its buckets: its dashboards and alerts go on working.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::model::{objects::Change, plan::IpFamily};

/// The kind of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

/// Times, with the buckets that the function gives.
type Times = Family<Label, Histogram, fn() -> Histogram>;
type Label = [(&'static str, &'static str); 1];
type PolicyLabels = [(&'static str, &'static str); 2];
type CodeLabel = [(&'static str, u16); 1];

/// The value of the label `ip_family`.
fn of(family: IpFamily) -> Label {
    let name = match family {
        IpFamily::V4 => "IPv4",
        IpFamily::V6 => "IPv6",
    };
    [("ip_family", name)]
}

#[derive(Debug)]
pub(super) struct KubeProxy {
    /// Changes from before the start are not measured: another agent programmed them, or none ran.
    started: SystemTime,
    duration: Times,
    full_duration: Times,
    partial_duration: Times,
    latency: Times,
    last_applied: Family<Label, Gauge<f64, AtomicU64>>,
    last_queued: Family<Label, Gauge<f64, AtomicU64>>,
    services: Changes,
    slices: Changes,
    no_local_endpoints: Family<PolicyLabels, Gauge>,
    healthz: Family<CodeLabel, Counter>,
    livez: Family<CodeLabel, Counter>,
}

/// Changes of one kind that came.
#[derive(Debug, Default)]
struct Changes {
    total: Family<Label, Counter>,
    pending: Family<Label, Gauge>,
}

impl Changes {
    fn came(&self, family: IpFamily) {
        self.total.get_or_create(&of(family)).inc();
        self.pending.get_or_create(&of(family)).inc();
    }

    fn taken(&self, family: IpFamily) {
        self.pending.get_or_create(&of(family)).set(0);
    }
}

impl KubeProxy {
    pub(super) fn new(registry: &mut Registry, started: SystemTime) -> Self {
        let rounds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let latency: fn() -> Histogram = || Histogram::new(latency_buckets());
        let this = Self {
            started,
            duration: Family::new_with_constructor(rounds),
            full_duration: Family::new_with_constructor(rounds),
            partial_duration: Family::new_with_constructor(rounds),
            latency: Family::new_with_constructor(latency),
            last_applied: Family::default(),
            last_queued: Family::default(),
            services: Changes::default(),
            slices: Changes::default(),
            no_local_endpoints: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        };
        this.register(registry);
        this
    }

    fn register(&self, registry: &mut Registry) {
        // A counter gets its `_total` when it is written.
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        let how_long = "How long it took to bring a batch of changes into the data path";
        registry.register("sync_proxy_rules_duration_seconds", how_long, self.duration.clone());
        registry.register(
            "sync_full_proxy_rules_duration_seconds",
            "How long it took to bring everything into the data path, after the start",
            self.full_duration.clone(),
        );
        registry.register(
            "sync_partial_proxy_rules_duration_seconds",
            "How long it took to bring what changed into the data path, after that",
            self.partial_duration.clone(),
        );
        registry.register(
            "network_programming_duration_seconds",
            "From the change of a pod or Service to the data path, by the EndpointSlice's annotation",
            self.latency.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When changes were brought into the data path last",
            self.last_applied.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a change came last",
            self.last_queued.clone(),
        );
        for (kind, changes) in [("service", &self.services), ("endpoint", &self.slices)] {
            registry.register(
                format!("sync_proxy_rules_{kind}_changes"),
                "Changes that came",
                changes.total.clone(),
            );
            registry.register(
                format!("sync_proxy_rules_{kind}_changes_pending"),
                "Changes that came and are not looked at yet",
                changes.pending.clone(),
            );
        }
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with policy Local that have endpoints, but none on this node",
            self.no_local_endpoints.clone(),
        );
        registry.register("proxy_healthz", "Answers of /healthz, by HTTP status", self.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez, by HTTP status", self.livez.clone());
    }

    pub(super) fn queued(&self, change: &Change) {
        let (changes, families): (_, &[IpFamily]) = match change {
            Change::Service(_) | Change::ServiceGone(_) => (&self.services, &IpFamily::ALL),
            Change::EndpointSlice(slice) if slice.ipv6 => (&self.slices, &[IpFamily::V6]),
            Change::EndpointSlice(_) => (&self.slices, &[IpFamily::V4]),
            // Its name does not show the family.
            Change::EndpointSliceGone(_) => (&self.slices, &IpFamily::ALL),
            _ => return,
        };
        for family in families {
            changes.came(*family);
            self.last_queued.get_or_create(&of(*family)).set(now());
        }
    }

    /// Changes that were not looked at yet.
    pub(super) fn pending(&self) -> i64 {
        let of_kind = |changes: &Changes| {
            IpFamily::ALL
                .iter()
                .map(|family| changes.pending.get(&of(*family)).map_or(0, |pending| pending.get()))
                .sum::<i64>()
        };
        of_kind(&self.services) + of_kind(&self.slices)
    }

    /// When changes were applied last; both families are applied together.
    pub(super) fn last_applied(&self) -> Option<SystemTime> {
        let seconds = self.last_applied.get(&of(IpFamily::V4))?.get();
        Some(SystemTime::UNIX_EPOCH + Duration::try_from_secs_f64(seconds).ok()?)
    }

    /// Changes were processed, successfully or not.
    pub(super) fn taken(&self) {
        for family in IpFamily::ALL {
            self.services.taken(family);
            self.slices.taken(family);
        }
    }

    pub(super) fn applied(&self, took: Duration, full: bool) {
        let by_kind = if full { &self.full_duration } else { &self.partial_duration };
        for family in IpFamily::ALL {
            self.duration.get_or_create(&of(family)).observe(took.as_secs_f64());
            by_kind.get_or_create(&of(family)).observe(took.as_secs_f64());
            self.last_applied.get_or_create(&of(family)).set(now());
        }
    }

    pub(super) fn programmed(&self, family: IpFamily, triggered: SystemTime) {
        if triggered < self.started {
            return;
        }
        // The control plane's clock may be ahead of ours.
        let latency = SystemTime::now().duration_since(triggered).unwrap_or_default();
        self.latency.get_or_create(&of(family)).observe(latency.as_secs_f64());
    }

    pub(super) fn set_no_local_endpoints(&self, family: IpFamily, internal: usize, external: usize) {
        let [family] = of(family);
        for (policy, ports) in [("internal", internal), ("external", external)] {
            let gauge = self.no_local_endpoints.get_or_create(&[family, ("traffic_policy", policy)]);
            gauge.set(i64::try_from(ports).unwrap_or(i64::MAX));
        }
    }

    pub(super) fn probed(&self, probe: Probe, code: u16) {
        let family = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        family.get_or_create(&[("code", code)]).inc();
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// kube-proxy's, in seconds: fine up to a minute, coarse up to five. It has one of 0 too.
fn latency_buckets() -> impl Iterator<Item = f64> {
    let steps = |range: std::ops::RangeInclusive<u16>, step| range.step_by(step).map(f64::from);
    [0.0, 0.25, 0.5].into_iter().chain(steps(1..=59, 1)).chain(steps(60..=115, 5)).chain(steps(120..=300, 30))
}
