//! Endpoints that left all EndpointSlices of their Service a moment ago.
//!
//! An endpoint may move from one EndpointSlice to another, and the watch may deliver the removal first. In between the
//! endpoint is in no slice, although it serves as before. So an endpoint that was ready counts, for the settle time, as one that
//! terminates and still serves (KEP-1669): it keeps its flows and sockets, and gets new ones only where no endpoint is
//! ready. Conditions of endpoints that are in a slice take effect at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::objects::{Endpoint, EndpointSlice, ObjectName};

/// Endpoints that left, until they are settled.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// How long they stay.
    time: Duration,
    departed: BTreeMap<ObjectName, Vec<Departed>>,
    /// Services of those without a deadline yet.
    fresh: BTreeSet<ObjectName>,
    /// Deadlines, the first in front: all stay for the same time.
    deadlines: VecDeque<(Instant, ObjectName)>,
}

/// Endpoints that left one EndpointSlice at one time.
#[derive(Debug)]
struct Departed {
    slice: EndpointSlice,
    until: Option<Instant>,
}

impl Settling {
    pub(super) fn new(time: Duration) -> Self {
        Self { time, ..Self::default() }
    }

    /// An EndpointSlice becomes another, or none.
    pub(super) fn replaced(&mut self, before: &EndpointSlice, after: Option<&EndpointSlice>) {
        if self.time.is_zero() {
            return;
        }
        // With other ports, all of its endpoints left the ones that they had.
        let stays = after.filter(|after| after.ports == before.ports);
        let stays: HashSet<IpAddr> = stays.into_iter().flat_map(addresses).collect();
        let has_left = |endpoint: &&Endpoint| {
            endpoint.ready && !endpoint.terminating && !stays.contains(&endpoint.address)
        };
        let left = before.endpoints.iter().filter(has_left);
        // All Services may have some at once, and mostly one each: the lists are no larger than what they hold.
        let mut endpoints = Vec::with_capacity(left.clone().count());
        endpoints.extend(left.map(|endpoint| Endpoint {
            ready: false,
            serving: true,
            terminating: true,
            ..endpoint.clone()
        }));
        if endpoints.is_empty() {
            return;
        }
        let service = before.service.clone();
        let slice = EndpointSlice {
            name: before.name.clone(),
            service: service.clone(),
            ipv6: before.ipv6,
            ports: before.ports.clone(),
            endpoints,
            triggered: None,
        };
        let departed = self.departed.entry(service.clone()).or_default();
        departed.reserve_exact(1);
        departed.push(Departed { slice, until: None });
        self.fresh.insert(service);
    }

    /// The Service is gone, and its endpoints with it.
    pub(super) fn forget(&mut self, service: &ObjectName) {
        self.departed.remove(service);
        self.fresh.remove(service);
    }

    /// Endpoints that left a Service and are not settled. If an endpoint is in an EndpointSlice again, the slice decides.
    pub(super) fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.departed.get(service).into_iter().flatten().map(|departed| &departed.slice)
    }

    /// It is `now`: gives the Services some of whose departed endpoints are settled. Those that left since the last call
    /// have their time from now on.
    pub(super) fn settle(&mut self, now: Instant) -> BTreeSet<ObjectName> {
        // A time beyond the clock's range cannot be waited for.
        let until = now.checked_add(self.time).unwrap_or(now);
        for service in std::mem::take(&mut self.fresh) {
            for departed in self.departed.get_mut(&service).into_iter().flatten() {
                departed.until.get_or_insert(until);
            }
            self.deadlines.push_back((until, service));
        }
        let mut settled = BTreeSet::new();
        while self.due().is_some_and(|until| until <= now)
            && let Some((_, service)) = self.deadlines.pop_front()
        {
            let Some(departed) = self.departed.get_mut(&service) else { continue };
            departed.retain(|departed| departed.until.is_none_or(|until| until > now));
            if departed.is_empty() {
                self.departed.remove(&service);
            }
            settled.insert(service);
        }
        if self.deadlines.is_empty() {
            // It had room for all that left in a rollout.
            self.deadlines = VecDeque::new();
        }
        settled
    }

    /// When [`Self::settle`] has something to report.
    pub(super) fn due(&self) -> Option<Instant> {
        self.deadlines.front().map(|(until, _)| *until)
    }
}

fn addresses(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    slice.endpoints.iter().map(|endpoint| endpoint.address)
}

#[cfg(test)]
mod tests;
