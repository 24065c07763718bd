//! The present objects of the sources: Services and their EndpointSlices, compact and indexed by Service.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;

use super::{
    intern::Interner,
    objects::{Change, EndpointSlice, Kind, Node, ObjectName, Service, ServiceCidr},
    plan::IpFamily,
    settling::Settling,
};
use crate::sorted::SortedMap;

/// The objects known, and which Services were touched since the last look.
///
/// Takes events in any order: slices before their Service, deletes of unknown objects, lists that are cut off and
/// begun again. Each event costs O(1) in the number of objects; the end of a list costs O(objects of its kind).
#[derive(Debug, Default)]
pub struct Store {
    services: HashMap<ObjectName, Entry>,
    /// Slice -> its Service, because a delete names the slice only.
    owners: HashMap<ObjectName, ObjectName>,
    lists: [Listing; 3],
    changed: BTreeSet<ObjectName>,
    triggers: BTreeMap<(ObjectName, IpFamily), Vec<SystemTime>>,
    node: Option<Node>,
    node_is_gone: bool,
    service_cidrs: BTreeMap<ObjectName, Seen<ServiceCidr>>,
    names: Interner,
    settling: Settling,
}

/// A change of endpoints, with the time that an EndpointSlice has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The Service whose endpoints they are.
    pub service: ObjectName,
    /// Their family.
    pub family: IpFamily,
    /// When, by the clock of the first observer.
    pub at: SystemTime,
}

/// A Service and its slices; either may be missing.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Seen<Service>>,
    /// By name: their order decides between duplicate endpoints.
    slices: SortedMap<Arc<str>, Seen<EndpointSlice>>,
}

/// An object and the list that named it last.
#[derive(Debug)]
struct Seen<T> {
    object: T,
    list: u32,
}

/// Where the lists of one kind are.
#[derive(Debug, Default)]
struct Listing {
    /// Counts the lists begun.
    list: u32,
    /// The list is not complete yet.
    running: bool,
    /// Some list was complete once.
    done_once: bool,
}

impl Store {
    /// An empty store, where an endpoint is gone at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store, where endpoints that leave all EndpointSlices stay as terminating ones for this long: see [`Self::settle`].
    pub fn with_settle_time(time: Duration) -> Self {
        Self { settling: Settling::new(time), ..Self::default() }
    }

    /// Applies a change from a source. Call [`Self::take_changed`] for the effect.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(service) => self.set_service(service),
            Change::ServiceGone(name) => self.remove_service(&name),
            Change::EndpointSlice(slice) => self.set_slice(slice),
            Change::EndpointSliceGone(name) => self.remove_slice(&name),
            Change::Node(node) => self.set_node(node),
            Change::NodeGone => self.node_is_gone = true,
            Change::ServiceCidr(cidr) => {
                let list = self.list_of(Kind::ServiceCidr);
                self.service_cidrs.insert(cidr.name.clone(), Seen { object: cidr, list });
            }
            Change::ServiceCidrGone(name) => drop(self.service_cidrs.remove(&name)),
            Change::ListStart(kind) => {
                let listing = &mut self.lists[kind as usize];
                listing.list = listing.list.wrapping_add(1);
                listing.running = true;
            }
            Change::ListDone(kind) => self.sweep(kind),
        }
    }

    /// The Services that [`Store::take_changed`] will return.
    pub fn changed(&self) -> impl Iterator<Item = &ObjectName> {
        self.changed.iter()
    }

    /// The Services that changed, themselves or in their slices, since the last call.
    pub fn take_changed(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.changed)
    }

    /// When the changes of slices happened that were applied since the last call. Removals have no time, and neither has a
    /// change that a removal follows, because both take effect together.
    pub fn take_triggers(&mut self) -> Vec<Trigger> {
        let triggers = std::mem::take(&mut self.triggers).into_iter();
        triggers
            .flat_map(|((service, family), times)| {
                times.into_iter().map(move |at| Trigger { service: service.clone(), family, at })
            })
            .collect()
    }

    /// Whether both Services and EndpointSlices were listed completely at least once. Until then a missing object may exist.
    pub fn is_complete(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice].into_iter().all(|kind| self.lists[kind as usize].done_once)
    }

    /// The Service of this name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)?.service.as_ref().map(|seen| &seen.object)
    }

    /// The slices of a Service, ordered by name.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.services
            .get(service)
            .into_iter()
            .flat_map(|entry| entry.slices.values().map(|seen| &seen.object))
    }

    /// Endpoints that left the slices of a Service a moment ago, as terminating ones: to be considered after [`Self::slices`].
    pub fn departed(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.settling.slices(service)
    }

    /// It is `now`: endpoints that were missing for the settle time are gone. Those that left since the last call have it from
    /// now on.
    pub fn settle(&mut self, now: Instant) {
        self.changed.extend(self.settling.settle(now));
    }

    /// When [`Self::settle`] has something to do without further changes.
    pub fn settles_at(&self) -> Option<Instant> {
        self.settling.due()
    }

    /// All Services, in no particular order.
    pub fn all_services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter_map(|entry| entry.service.as_ref().map(|seen| &seen.object))
    }

    /// This node, once known. Stays when its object is deleted: the machine still runs.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Whether this node's object was deleted, or never existed.
    pub fn node_is_gone(&self) -> bool {
        self.node_is_gone
    }

    /// Whether load balancers should send new connections here (KEP-3836). Not if the Node was deleted, or is about to
    /// be. `None`: no source has the Node, as with manifests without one.
    pub fn node_is_eligible(&self) -> Option<bool> {
        if self.node_is_gone { Some(false) } else { self.node.as_ref().map(|node| !node.leaving) }
    }

    /// The ranges of service addresses, of all ServiceCIDRs.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flat_map(|seen| &seen.object.cidrs).copied().collect()
    }

    fn list_of(&self, kind: Kind) -> u32 {
        self.lists[kind as usize].list
    }

    /// Plans depend on the zone, and source ranges on the addresses.
    fn set_node(&mut self, node: Node) {
        let before = self.node.replace(node).unwrap_or_default();
        self.node_is_gone = false;
        let Some(node) = &self.node else { return };
        let moved = before.zone != node.zone;
        let renumbered = before.addresses != node.addresses;
        let services = self.services.values().filter_map(|entry| entry.service.as_ref());
        let affected = services.filter(|seen| moved || renumbered && seen.object.source_ranges.is_some());
        self.changed.extend(affected.map(|seen| seen.object.name.clone()));
    }

    fn set_service(&mut self, mut service: Service) {
        let list = self.list_of(Kind::Service);
        self.names.share(&mut service.name.namespace);
        self.names.share(&mut service.name.name);
        for port in &mut service.ports {
            self.names.share(&mut port.name);
        }

        let name = service.name.clone();
        let known = &mut self.services.entry(name.clone()).or_default().service;
        let same = known.as_ref().is_some_and(|seen| seen.object == service);
        *known = Some(Seen { object: service, list });
        if !same {
            self.changed.insert(name);
        }
    }

    fn remove_service(&mut self, name: &ObjectName) {
        let Some(entry) = self.services.get_mut(name) else {
            return;
        };
        if entry.service.take().is_some() {
            self.changed.insert(name.clone());
        }
        self.settling.forget(name);
        self.drop_if_empty(name);
    }

    fn set_slice(&mut self, mut slice: EndpointSlice) {
        let list = self.list_of(Kind::EndpointSlice);
        self.names.share(&mut slice.name.namespace);
        self.names.share(&mut slice.service.namespace);
        self.names.share(&mut slice.service.name);
        for port in &mut slice.ports {
            self.names.share(&mut port.name);
        }
        for endpoint in &mut slice.endpoints {
            endpoint.hints.names_mut().chain(&mut endpoint.node).for_each(|name| self.names.share(name));
        }
        // A time, not contents: not a part of what is compared and kept.
        let triggered = slice.triggered.take();

        let service = slice.service.clone();
        if let Some((known, owner)) = self.owners.get_key_value(&slice.name) {
            // The name that the keys have: a slice that changes needs no second one.
            slice.name = known.clone();
            if *owner != service {
                self.remove_slice(&slice.name);
            }
        }
        self.owners.insert(slice.name.clone(), service.clone());

        let entry = self.services.entry(service.clone()).or_default();
        if let Some(seen) = entry.slices.get_mut(&slice.name.name) {
            let before = &mut seen.object;
            if *before == slice {
                seen.list = list;
                return;
            }
            if entry.service.is_some() {
                self.settling.replaced(before, Some(&slice));
            }
            // Ports that did not change keep their allocation. New ones, each between endpoints that left, would hold those apart in the
            // heap when they are freed.
            if before.ports == slice.ports {
                std::mem::swap(&mut before.ports, &mut slice.ports);
            }
        }
        if let Some(at) = triggered {
            self.triggers.entry((service.clone(), family_of(&slice))).or_default().push(at);
        }
        entry.slices.insert(Arc::clone(&slice.name.name), Seen { object: slice, list });
        self.changed.insert(service);
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.owners.remove(name) else {
            return;
        };
        if let Some(entry) = self.services.get_mut(&service)
            && let Some(seen) = entry.slices.remove(&name.name)
        {
            self.triggers.remove(&(service.clone(), family_of(&seen.object)));
            if entry.service.is_some() {
                self.settling.replaced(&seen.object, None);
            }
        }
        self.drop_if_empty(&service);
        self.changed.insert(service);
    }

    fn drop_if_empty(&mut self, service: &ObjectName) {
        if self.services.get(service).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty())
        {
            self.services.remove(service);
        }
    }

    /// The list is complete: removes what it did not name.
    fn sweep(&mut self, kind: Kind) {
        let listing = &mut self.lists[kind as usize];
        if !listing.running {
            return;
        }
        listing.running = false;
        listing.done_once = true;
        let list = listing.list;

        match kind {
            Kind::Service => {
                let stale = |entry: &Entry| entry.service.as_ref().is_some_and(|seen| seen.list != list);
                let gone: Vec<_> = self
                    .services
                    .iter()
                    .filter(|(_, entry)| stale(entry))
                    .map(|(name, _)| name.clone())
                    .collect();
                gone.iter().for_each(|name| self.remove_service(name));
            }
            Kind::EndpointSlice => {
                let slices = self.services.values().flat_map(|entry| entry.slices.values());
                let gone: Vec<_> =
                    slices.filter(|seen| seen.list != list).map(|seen| seen.object.name.clone()).collect();
                gone.iter().for_each(|name| self.remove_slice(name));
            }
            Kind::ServiceCidr => self.service_cidrs.retain(|_, seen| seen.list == list),
        }
    }
}

fn family_of(slice: &EndpointSlice) -> IpFamily {
    if slice.ipv6 { IpFamily::V6 } else { IpFamily::V4 }
}

#[cfg(test)]
mod tests;
