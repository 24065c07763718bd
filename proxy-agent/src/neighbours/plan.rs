//! Which next hop is probed when, and how. Pure.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use proxy_sys::packet::Mac;

use crate::{datapath::next_hops::Neighbour, net::neighbour::Resolved};

/// Between two probes of a next hop that replies. A little less than two ticks.
const INTERVAL: Duration = Duration::from_millis(900);

/// How long a unicast probe may stay without a reply. A little less than a tick.
const PATIENCE: Duration = Duration::from_millis(400);

/// The kernel stamps a reply with jiffies, of 10 ms at most: it may seem to be a little older than the probe.
const JIFFY: Duration = Duration::from_millis(12);

/// Probes of one tick that all hosts of a network receive.
const MAX_BROADCASTS: u32 = 32;

/// Broadcasts until a host that replies with the same MAC is believed: the kernel takes no other one within a second of a change
/// (`locktime`), though it counts the reply.
const BROADCASTS: u8 = 2;

/// The probe for a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// No probe yet.
    None,
    /// A probe to the host that has the MAC as far as the kernel knows.
    Unicast(Mac),
    /// A probe to all hosts.
    All,
}

/// The last probe of a next hop.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Instant,
    /// The kernel's entry at that time.
    mac: Mac,
    /// How many in a row went to all; 0: it was unicast.
    broadcasts: u8,
}

/// Remembers the last probe of each next hop in use.
#[derive(Debug, Default)]
pub(super) struct Plan {
    sent: HashMap<Neighbour, Sent>,
}

impl Plan {
    /// Forgets all but these.
    pub(super) fn keep(&mut self, used: &[Neighbour]) {
        let used: HashSet<&Neighbour> = used.iter().collect();
        self.sent.retain(|neighbour, _| used.contains(neighbour));
    }

    /// The probe for a next hop with this entry in the kernel. `broadcasts` counts those of this tick.
    pub(super) fn probe(
        &mut self,
        neighbour: Neighbour,
        known: Option<Resolved>,
        now: Instant,
        broadcasts: &mut u32,
    ) -> Probe {
        // The kernel resolves an unresolved next hop itself, when it has a packet for it.
        let Some(Resolved { mac, confirmed }) = known else {
            self.sent.remove(&neighbour);
            return Probe::None;
        };
        let unicast = Sent { at: now, mac, broadcasts: 0 };
        let next = match self.sent.get(&neighbour) {
            None if confirmed < PATIENCE => return Probe::None,
            None => unicast,
            Some(last) => {
                let age = now.saturating_duration_since(last.at);
                let has_replied = confirmed <= age + JIFFY;
                let is_believed =
                    last.mac != mac || has_replied && (last.broadcasts == 0 || last.broadcasts >= BROADCASTS);
                let wait = if is_believed || last.broadcasts > 0 { INTERVAL } else { PATIENCE };
                if age < wait {
                    return Probe::None;
                }
                if is_believed {
                    unicast
                } else {
                    Sent { broadcasts: last.broadcasts.saturating_add(1), ..unicast }
                }
            }
        };
        if next.broadcasts > 0 {
            if *broadcasts >= MAX_BROADCASTS {
                return Probe::None;
            }
            *broadcasts += 1;
        }
        self.sent.insert(neighbour, next);
        if next.broadcasts > 0 { Probe::All } else { Probe::Unicast(mac) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Mac = [2, 0, 0, 0, 0, 1];
    const NEW: Mac = [2, 0, 0, 0, 0, 2];

    fn neighbour(last: u8) -> Neighbour {
        Neighbour { ifindex: 2, ip: [10, 0, 0, last].into() }
    }

    /// The probes at each tick of half a second, to a next hop whose state is `state`: its MAC and how many milliseconds ago it was
    /// confirmed, by tick.
    fn sent(state: impl Fn(u64, Option<u64>) -> Option<(Mac, u64)>, ticks: u64) -> Vec<(u64, Probe)> {
        let (mut plan, start, mut last, mut all) = (Plan::default(), Instant::now(), None, Vec::new());
        for tick in 0..ticks {
            let now = start + Duration::from_millis(500 * tick);
            let known = state(tick, last)
                .map(|(mac, confirmed)| Resolved { mac, confirmed: Duration::from_millis(confirmed) });
            let probe = plan.probe(neighbour(1), known, now, &mut 0);
            if probe != Probe::None {
                last = Some(tick);
                all.push((tick, probe));
            }
        }
        all
    }

    #[test]
    fn one_that_replies_is_asked_once_a_second() {
        let replies = |tick, last: Option<u64>| Some((OLD, last.map_or(9_000, |last| 500 * (tick - last))));
        let probes = sent(replies, 9);
        assert_eq!(probes, [0, 2, 4, 6, 8].map(|tick| (tick, Probe::Unicast(OLD))));
    }

    #[test]
    fn one_that_does_not_is_sought_among_all() {
        let probes = sent(|tick, _| Some((OLD, 9_000 + 500 * tick)), 8);
        let expected =
            [(0, Probe::Unicast(OLD)), (1, Probe::All), (3, Probe::All), (5, Probe::All), (7, Probe::All)];
        assert_eq!(probes, expected);
    }

    #[test]
    fn another_mac_is_believed_at_once() {
        let probes = sent(|tick, _| Some(if tick < 2 { (OLD, 9_000) } else { (NEW, 500) }), 5);
        assert_eq!(probes, [(0, Probe::Unicast(OLD)), (1, Probe::All), (3, Probe::Unicast(NEW))]);
    }

    #[test]
    fn a_reply_that_the_kernel_did_not_take_is_asked_for_again() {
        // Confirmed by the first broadcast, with the old MAC: within the kernel's `locktime`.
        let probes = sent(|tick, _| Some((OLD, if tick < 2 { 9_000 } else { 500 * (tick - 1) })), 4);
        assert_eq!(probes, [(0, Probe::Unicast(OLD)), (1, Probe::All), (3, Probe::All)]);
    }

    #[test]
    fn one_that_is_not_resolved_is_the_kernels() {
        assert!(sent(|_, _| None, 4).is_empty());
        assert!(sent(|tick, _| Some((OLD, 100 * tick)), 4).is_empty(), "confirmed a moment ago");
    }

    #[test]
    fn broadcasts_have_a_limit() {
        let (mut plan, start, mut broadcasts) = (Plan::default(), Instant::now(), 0);
        let known = Some(Resolved { mac: OLD, confirmed: Duration::from_secs(9) });
        let all: Vec<Neighbour> = (0..100).map(neighbour).collect();
        for tick in 0..2 {
            for neighbour in &all {
                plan.probe(*neighbour, known, start + Duration::from_millis(500 * tick), &mut broadcasts);
            }
        }
        assert_eq!(broadcasts, MAX_BROADCASTS);
        plan.keep(&all[..3]);
        assert_eq!(plan.sent.len(), 3);
    }
}
