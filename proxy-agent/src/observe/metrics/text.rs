//! The formats that metrics are sent in.

use std::fmt::{self, Write as _};

use prometheus_client::{encoding::text, registry::Registry};

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, version 0.0.4: the format of kube-proxy, which every reader knows.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The format for a client with this `Accept` header: OpenMetrics only if the client names it.
    pub fn preferred<'a>(mut accept: impl Iterator<Item = &'a str>) -> Self {
        let knows = accept.any(|value| value.contains("application/openmetrics-text"));
        if knows { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Writes everything in a registry.
    pub(super) fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut open_metrics = String::new();
        text::encode(&mut open_metrics, registry)?;
        match self {
            Self::OpenMetrics => Ok(open_metrics),
            Self::Prometheus => to_prometheus(&open_metrics),
        }
    }
}

/// The formats differ in comments only, as far as we write them: in Prometheus' a family has the name of its samples, so
/// that of a counter ends in `_total`; info is a gauge; there is neither unit nor end.
fn to_prometheus(open_metrics: &str) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                kind => ("", kind),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                writeln!(text, "# HELP {name}{suffix} {words}")?;
            }
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else if !line.starts_with('#') {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge, info::Info};

    use super::*;

    #[test]
    fn prometheus_names_families_as_their_samples() {
        let mut registry = Registry::default();
        registry.register("seen", "Things seen", Counter::<u64>::default());
        registry.register("lost_total", "A gauge of an unusual name", Gauge::<i64>::default());
        registry.register("build", "The build", Info::new([("version", "1")]));
        let expected = "\
# HELP seen_total Things seen.
# TYPE seen_total counter
seen_total 0
# HELP lost_total A gauge of an unusual name.
# TYPE lost_total gauge
lost_total 0
# HELP build_info The build.
# TYPE build_info gauge
build_info{version=\"1\"} 1
";
        assert_eq!(Format::Prometheus.encode(&registry).unwrap(), expected);
        assert!(Format::OpenMetrics.encode(&registry).unwrap().ends_with("# EOF\n"));
    }

    #[test]
    fn open_metrics_are_sent_on_request() {
        for (accept, expected) in [
            (&[][..], Format::Prometheus),
            (&["*/*"], Format::Prometheus),
            (&["text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], Format::Prometheus),
            (&["application/openmetrics-text;version=1.0.0;q=0.6", "text/plain;q=0.3"], Format::OpenMetrics),
        ] {
            assert_eq!(Format::preferred(accept.iter().copied()), expected, "{accept:?}");
        }
    }
}
