//! Rates between two samples.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use proxy_common::layout::{
    counter::Counter,
    event::{RateKey, TRANSLATED},
    id::Id,
};
use serde::Serialize;

use super::sample::Sample;
use crate::{
    datapath::{
        MonitorVerdict,
        verdict::{counter, verdict},
    },
    monitor::lookup,
};

/// Rates are per second.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    /// How long was counted.
    pub(super) seconds: f64,
    pub(super) totals: Totals,
    pub(super) services: Vec<ServiceRate>,
    pub(super) endpoints: Vec<EndpointRate>,
    pub(super) reasons: Vec<ReasonRate>,
}

/// Rates of the node.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    /// Packets of known flows from clients.
    pub(super) packets_to_endpoints: f64,
    /// Packets of known flows from endpoints.
    pub(super) packets_to_clients: f64,
    /// Flows at the end.
    pub(super) flows: u64,
    #[serde(flatten)]
    pub(super) rates: Rates,
}

/// Rates of decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rates {
    /// New flows, packet by packet.
    pub(super) new_flows: f64,
    /// Sockets that got an endpoint.
    pub(super) sockets: f64,
    /// Refused or reset.
    pub(super) rejected: f64,
    /// Dropped.
    pub(super) dropped: f64,
}

impl Rates {
    fn add(&mut self, key: &RateKey, rate: f64) {
        let is_socket = key.is_socket != 0;
        match verdict(key.decision, is_socket) {
            Some(MonitorVerdict::Translated) if is_socket => self.sockets += rate,
            Some(MonitorVerdict::Translated) => self.new_flows += rate,
            Some(MonitorVerdict::Rejected | MonitorVerdict::Reset) => self.rejected += rate,
            Some(MonitorVerdict::Dropped) => self.dropped += rate,
            Some(MonitorVerdict::Answered) | None => {}
        }
    }

    fn sum(&self) -> f64 {
        self.new_flows + self.sockets + self.rejected + self.dropped
    }
}

/// Rates of a service port.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceRate {
    /// None: a frontend without Service.
    pub(super) service: Option<String>,
    #[serde(flatten)]
    pub(super) rates: Rates,
    /// Flows at the end.
    pub(super) flows: u64,
}

/// Rates of an endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointRate {
    pub(super) endpoint: SocketAddr,
    pub(super) service: Option<String>,
    pub(super) new_flows: f64,
    pub(super) sockets: f64,
}

/// The rate of a reason for a reject or drop.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReasonRate {
    pub(super) reason: &'static str,
    pub(super) rate: f64,
    /// In words.
    pub(super) meaning: &'static str,
}

/// The owner of a frontend, and the name of a service port.
pub(super) trait Names {
    fn of_frontend(&self, key: &RateKey) -> Option<String>;
    fn of_service(&self, service: Id) -> Option<String>;
}

impl Names for lookup::Lookup {
    fn of_frontend(&self, key: &RateKey) -> Option<String> {
        self.service(key.version, &key.frontend, key.frontend_port, key.protocol)
    }

    fn of_service(&self, service: Id) -> Option<String> {
        self.name(service)
    }
}

impl Report {
    /// At most `limit` service ports and endpoints, the busiest first.
    pub(super) fn new(before: &Sample, after: &Sample, names: &impl Names, limit: usize) -> Self {
        let seconds = after.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let mut totals = Totals {
            packets_to_endpoints: packets(before, after, Counter::FlowForward) / seconds,
            packets_to_clients: packets(before, after, Counter::FlowReverse) / seconds,
            flows: after.flows.values().sum(),
            ..Totals::default()
        };
        let mut services: BTreeMap<Option<String>, (Rates, u64)> = BTreeMap::new();
        let mut endpoints: BTreeMap<(SocketAddr, Option<String>), Rates> = BTreeMap::new();
        let mut reasons: BTreeMap<&str, (f64, &str)> = BTreeMap::new();
        for (key, rate) in differences(before, after, seconds) {
            let service = names.of_frontend(key);
            totals.rates.add(key, rate);
            services.entry(service.clone()).or_default().0.add(key, rate);
            if key.decision == TRANSLATED {
                let endpoint = lookup::socket(key.version, &key.endpoint, key.endpoint_port);
                endpoints.entry((endpoint, service)).or_default().add(key, rate);
            } else if let Some(counter) = counter(key.decision) {
                reasons.entry(counter.name()).or_insert((0.0, counter.help())).0 += rate;
            }
        }
        for (service, count) in &after.flows {
            services.entry(names.of_service(*service)).or_default().1 += count;
        }
        let mut services: Vec<_> = services
            .into_iter()
            .map(|(service, (rates, flows))| ServiceRate { service, rates, flows })
            .collect();
        // Stable: equally busy ones stay in the order of names.
        services.sort_by(|a, b| b.rates.sum().total_cmp(&a.rates.sum()).then_with(|| b.flows.cmp(&a.flows)));
        services.truncate(limit);
        let mut endpoints: Vec<_> = endpoints
            .into_iter()
            .map(|((endpoint, service), Rates { new_flows, sockets, .. })| EndpointRate {
                endpoint,
                service,
                new_flows,
                sockets,
            })
            .collect();
        endpoints.sort_by(|a, b| (b.new_flows + b.sockets).total_cmp(&(a.new_flows + a.sockets)));
        endpoints.truncate(limit);
        let mut reasons: Vec<_> = reasons
            .into_iter()
            .map(|(reason, (rate, meaning))| ReasonRate { reason, rate, meaning })
            .collect();
        reasons.sort_by(|a, b| b.rate.total_cmp(&a.rate));
        Self { seconds, totals, services, endpoints, reasons }
    }
}

/// The increase in the second sample, per second. A counter that was evicted from the map starts again from zero.
fn differences<'a>(
    before: &'a Sample,
    after: &'a Sample,
    seconds: f64,
) -> impl Iterator<Item = (&'a RateKey, f64)> {
    let earlier: &HashMap<RateKey, u64> = &before.rates;
    after.rates.iter().filter_map(move |(key, count)| {
        let known = earlier.get(key).copied().filter(|known| known <= count).unwrap_or(0);
        (*count > known).then_some((key, (count - known) as f64 / seconds))
    })
}

fn packets(before: &Sample, after: &Sample, counter: Counter) -> f64 {
    let count = |sample: &Sample| sample.counters.get(&counter).copied().unwrap_or(0);
    count(after).saturating_sub(count(before)) as f64
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    struct Known;

    impl Names for Known {
        fn of_frontend(&self, key: &RateKey) -> Option<String> {
            (key.frontend[0] < 3).then(|| format!("default/{}", key.frontend[0]))
        }

        fn of_service(&self, service: Id) -> Option<String> {
            Some(format!("default/{}", service.0))
        }
    }

    fn key(frontend: u32, decision: u8, is_socket: u8) -> RateKey {
        RateKey { frontend: [frontend, 0, 0, 0], decision, is_socket, version: 4, ..RateKey::default() }
    }

    #[test]
    fn busy_services_come_first() {
        let at = Instant::now();
        let sample = |seconds, rates: &[(RateKey, u64)], packets| Sample {
            at: at + Duration::from_secs(seconds),
            rates: rates.iter().copied().collect(),
            counters: HashMap::from([(Counter::FlowForward, packets)]),
            flows: HashMap::from([(Id(1), 4), (Id(2), 5)]),
        };
        let (first, second, rejected) =
            (key(1, TRANSLATED, 0), key(2, TRANSLATED, 1), key(3, Counter::NoEndpoints as u8, 0));
        let before = sample(0, &[(first, 10), (second, 100)], 7);
        let after = sample(2, &[(first, 14), (second, 110), (rejected, 2)], 27);
        let report = Report::new(&before, &after, &Known, 10);
        assert_eq!(report.totals.rates, Rates { new_flows: 2.0, sockets: 5.0, rejected: 1.0, dropped: 0.0 });
        assert_eq!((report.totals.packets_to_endpoints, report.totals.flows), (10.0, 9));
        let rows: Vec<_> =
            report.services.iter().map(|row| (row.service.as_deref(), row.rates.sum(), row.flows)).collect();
        assert_eq!(rows, [(Some("default/2"), 5.0, 5), (Some("default/1"), 2.0, 4), (None, 1.0, 0)]);
        assert_eq!(report.endpoints.len(), 2);
        assert_eq!((report.reasons[0].reason, report.reasons[0].rate), ("no_endpoints", 1.0));
        assert_eq!(Report::new(&before, &after, &Known, 1).services.len(), 1);
        // Counted from zero again after an eviction.
        let again = sample(4, &[(first, 6)], 27);
        assert_eq!(Report::new(&after, &again, &Known, 10).totals.rates.new_flows, 3.0);
    }
}
