//! Requests to the API server, as client-go counts them: under its names, with its labels and buckets.

use std::time::Duration;

use http::{Method, Uri};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// Counts requests. Clones share the counts.
#[derive(Clone, Debug)]
pub struct RequestCounts {
    requests: Family<[Label; 3], Counter>,
    durations: Family<[Label; 2], Histogram, fn() -> Histogram>,
}

type Label = (&'static str, String);

impl Default for RequestCounts {
    fn default() -> Self {
        let durations: fn() -> Histogram = || Histogram::new(BUCKETS);
        Self { requests: Family::default(), durations: Family::new_with_constructor(durations) }
    }
}

/// Seconds, from client-go's `rest_client_request_duration_seconds`.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

/// client-go's name for a request without an answer.
const NO_ANSWER: &str = "<error>";

impl RequestCounts {
    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "rest_client_requests",
            "Requests to the API server, by HTTP status, method and host",
            self.requests.clone(),
        );
        registry.register(
            "rest_client_request_duration_seconds",
            "Time until the answer of the API server began, by verb and host",
            self.durations.clone(),
        );
    }

    /// A request was answered with this HTTP status, or not at all.
    pub(super) fn count(&self, method: &Method, address: &Uri, code: Option<u16>, took: Duration) {
        let host = || address.authority().map_or_else(String::new, ToString::to_string);
        let code = code.map_or_else(|| NO_ANSWER.to_owned(), |code| code.to_string());
        let labels = [("code", code), ("method", method.to_string()), ("host", host())];
        self.requests.get_or_create(&labels).inc();
        let labels = [("verb", method.to_string()), ("host", host())];
        self.durations.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
