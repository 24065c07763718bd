//! Warnings of dropped packets that need an administrator.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use proxy_common::layout::counter::Counter;

/// Each warning is logged at most once in this time, and is a problem of `/healthz` for as long.
const QUIET: Duration = Duration::from_secs(60);

/// Counters with the text of their warnings, behind the number of packets.
const WATCHED: [(Counter, &str); 2] = [
    (
        Counter::SnatExhausted,
        "were dropped because no source port was free towards a backend on another node: widen --snat-ports, or give \
         the Service more endpoints",
    ),
    (Counter::FlowMapFull, "were dropped because the flow map took no entry: raise --max-flows"),
];

/// Looks at counters from time to time.
#[derive(Debug, Default)]
pub struct Drops {
    /// The count at the last warning; at first, the count that an earlier agent left.
    seen: HashMap<Counter, u64>,
    logged: HashMap<Counter, (Instant, String)>,
}

impl Drops {
    /// Warnings of counters that rose, due now.
    pub fn look(&mut self, counts: &[(Counter, u64)], now: Instant) -> Vec<String> {
        let is_first = self.seen.is_empty();
        self.logged.retain(|_, (at, _)| now.duration_since(*at) < QUIET);
        let mut warnings = Vec::new();
        for (counter, text) in WATCHED {
            let count = counts.iter().find(|(known, _)| *known == counter).map_or(0, |(_, count)| *count);
            let seen = self.seen.entry(counter).or_insert(if is_first { count } else { 0 });
            if count < *seen {
                // The maps were created again.
                *seen = 0;
            }
            if count > *seen && !self.logged.contains_key(&counter) {
                let warning = format!("{} packets {text}", count - *seen);
                *seen = count;
                self.logged.insert(counter, (now, warning.clone()));
                warnings.push(warning);
            }
        }
        warnings
    }

    /// Recent warnings.
    pub fn recent(&self) -> Vec<String> {
        let logged = WATCHED.iter().filter_map(|(counter, _)| self.logged.get(counter));
        logged.map(|(_, warning)| warning.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_reported_at_most_once_a_minute() {
        let start = Instant::now();
        let mut drops = Drops::default();
        for (seconds, exhausted, full, expected) in [
            (0, 7, 0, &[][..]),
            (5, 7, 0, &[]),
            (10, 9, 0, &["2 packets were dropped because no source port"]),
            (15, 20, 3, &["3 packets were dropped because the flow map"]),
            (60, 30, 3, &[]),
            (70, 30, 3, &["21 packets were dropped because no source port"]),
            (75, 30, 4, &["1 packets were dropped because the flow map"]),
            (200, 30, 4, &[]),
            (205, 1, 0, &["1 packets were dropped"]),
        ] {
            let counts = [(Counter::SnatExhausted, exhausted), (Counter::FlowMapFull, full)];
            let now = start + Duration::from_secs(seconds);
            let warnings = drops.look(&counts, now);
            assert_eq!(warnings.len(), expected.len(), "{seconds} s: {warnings:?}");
            for (warning, beginning) in warnings.iter().zip(expected) {
                assert!(warning.starts_with(beginning), "{warning}");
            }
            if seconds == 75 {
                assert_eq!(drops.recent().len(), 2);
            }
            if seconds == 200 {
                assert!(drops.recent().is_empty());
            }
        }
    }
}
