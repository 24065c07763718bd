//! From the store to the data path: plans changes, and applies the differences.

mod journal;
mod problems;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use tracing::info;

use self::{journal::Journal, problems::Problems};
use crate::{
    datapath::{
        Services,
        room::{Part, Room},
        services::error::WriteError,
    },
    model::{
        budget::{self, Budget},
        changes::changes,
        counts::Counts,
        local,
        objects::{Change, Node, ObjectName},
        plan::{HealthCheck, IpFamily, PortName, ServicePlan},
        planner,
        store::{Store, Trigger},
    },
};

pub use self::problems::{Problem, Reason};
pub use crate::model::counts::NoLocalEndpoints;

/// The store, and the plans made from it.
pub struct Sync {
    node_name: String,
    budget: Budget,
    store: Store,
    planned: HashMap<ObjectName, ServicePlan>,
    counts: Counts,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    /// Services whose last change the maps did not take: tried again with every change.
    failed: BTreeSet<ObjectName>,
    problems: Problems,
    journal: Journal,
    /// Ports that must be removed and could not be.
    unremoved: BTreeSet<PortName>,
    /// Addresses of this node: see [`local::leave_to_node`].
    local_addresses: BTreeSet<IpAddr>,
    pruned: bool,
    /// When this began: changes from before do not measure our speed.
    started: SystemTime,
    /// When the changes happened that wait to be applied.
    triggers: Vec<Trigger>,
}

/// The result of a round of [`Sync::apply`].
#[derive(Debug, Default)]
pub struct Round {
    /// Services that were looked at.
    pub services: usize,
    /// The changes of endpoints that are in the maps now, since the agent began; those of services that failed come later.
    pub triggers: Vec<Trigger>,
    /// [`Sync::health_checks`] are others now.
    pub health_checks_changed: bool,
    /// Services that the maps did not take.
    pub failed: usize,
    /// Parts that were full.
    pub full: BTreeSet<Part>,
}

impl Round {
    /// This round, after which another one retried its failures.
    pub fn followed_by(mut self, next: Self) -> Self {
        self.triggers.extend(next.triggers);
        Self {
            services: self.services.max(next.services),
            triggers: self.triggers,
            health_checks_changed: self.health_checks_changed || next.health_checks_changed,
            failed: next.failed,
            full: next.full,
        }
    }
}

impl Sync {
    /// Nothing known, nothing planned. Endpoints that leave all EndpointSlices of a Service are removed after `settle_time`.
    pub fn new(node_name: &str, settle_time: Duration) -> Self {
        Self {
            node_name: node_name.to_owned(),
            budget: Budget::default(),
            store: Store::with_settle_time(settle_time),
            planned: HashMap::new(),
            counts: Counts::default(),
            health_checks: BTreeMap::new(),
            failed: BTreeSet::new(),
            problems: Problems::default(),
            journal: Journal::new(Instant::now()),
            unremoved: BTreeSet::new(),
            local_addresses: BTreeSet::new(),
            pruned: false,
            started: SystemTime::now(),
            triggers: Vec::new(),
        }
    }

    /// With other bounds for each Service than the default ones.
    #[must_use]
    pub fn with_budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// When [`Self::apply`] has something to do, even without changes from a source: endpoints are gone for good then.
    pub fn settles_at(&self) -> Option<Instant> {
        self.store.settles_at()
    }

    /// Applies a change from a source.
    pub fn take(&mut self, change: Change) {
        self.store.apply(change);
    }

    /// Addresses of the Node object, once it is known.
    pub fn node_addresses(&self) -> &[IpAddr] {
        self.store.node().map_or(&[], |node| &node.addresses)
    }

    /// This node's object; `None` if no source ever had it. Stays when the object is deleted.
    pub fn node(&self) -> Option<&Node> {
        self.store.node()
    }

    /// Whether load balancers should send new connections here (KEP-3836). Not if the Node was deleted, or is about to
    /// be. `None`: no source has the Node, as with manifests without one.
    pub fn node_is_eligible(&self) -> Option<bool> {
        self.store.node_is_eligible()
    }

    /// The ranges of service addresses that ServiceCIDRs give.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.store.service_cidrs()
    }

    /// The replies for `healthCheckNodePort`s.
    pub fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_checks
    }

    /// Ports of a family that no connection reaches here for want of a local endpoint.
    pub fn no_local_endpoints(&self, family: IpFamily) -> NoLocalEndpoints {
        self.counts.no_local_endpoints(family)
    }

    /// Whether any service has source ranges.
    pub fn has_source_ranges(&self) -> bool {
        self.counts.with_source_ranges() > 0
    }

    /// Whether a service needs more than the socket programs: SCTP, or a service for some clients only, unless it is known
    /// from which addresses sockets send (`knows_sources`).
    pub fn needs_packets(&self, knows_sources: bool) -> bool {
        self.counts.sctp() > 0 || (!knows_sources && self.has_source_ranges())
    }

    /// Whether the maps did not take the last change of some service.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Problems of services, in order.
    pub fn problems(&self, services: &mut Services) -> BTreeSet<Problem> {
        self.problems.all(services.conflicts())
    }

    /// The new ones of these problems since the last call, and how many services have none any more.
    pub fn report(&mut self, problems: &BTreeSet<Problem>) -> (Vec<Problem>, usize) {
        self.problems.report(problems)
    }

    /// Whether the kernel refuses every write, for all services. That is the node's problem.
    pub fn fails_wholly(&self) -> bool {
        !self.planned.is_empty() && self.planned.keys().all(|name| self.problems.is_refused(name))
    }

    /// Logs how many changes were not logged, if it is time. To be called regularly.
    pub fn flush_journal(&mut self, now: Instant) {
        self.journal.look(now);
    }

    /// How much the plans take in the maps. Looks at all of them.
    pub fn demand(&self) -> Room {
        let mut demand = Room::default();
        for plan in self.planned.values().flat_map(|plan| &plan.ports) {
            let family = plan.name.family;
            demand.add(Part::ServicePorts, 1);
            demand.add(Part::Backends, plan.serving.len());
            demand.add(Part::Frontends(family), plan.frontends.len());
            let mut lists = vec![&plan.internal, &plan.external, &plan.cluster, &plan.serving];
            // Equal lists share their slots.
            lists.dedup();
            demand.add(Part::Slots(family), lists.iter().map(|list| list.len()).sum());
        }
        demand
    }

    /// Whether everything has been listed.
    pub fn is_complete(&self) -> bool {
        self.store.is_complete()
    }

    /// Records the node's own addresses; plans the affected services again.
    pub fn set_local_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        if self.local_addresses == *addresses {
            return;
        }
        let changed: BTreeSet<IpAddr> =
            self.local_addresses.symmetric_difference(addresses).copied().collect();
        self.local_addresses.clone_from(addresses);
        let affected = self.store.all_services().filter(|service| local::depends_on(service, &changed));
        self.failed.extend(affected.map(|service| service.name.clone()));
    }

    /// UDP frontends that the next [`Sync::apply`] will add and that clients outside may use; node ports at each of these addresses.
    pub fn coming_udp_frontends(&self, node_addresses: &BTreeSet<IpAddr>) -> HashSet<SocketAddr> {
        let mut coming = HashSet::new();
        if !self.store.is_complete() {
            return coming;
        }
        for service in self.store.changed().chain(&self.failed).filter_map(|name| self.store.service(name)) {
            let planned = self.planned.get(&service.name).map_or(&[][..], |plan| &plan.ports);
            coming.extend(local::coming_udp_frontends(service, planned, node_addresses));
        }
        coming
    }

    /// Brings the data path up to date with the store. Does nothing before the first lists are complete: until then
    /// the maps hold an earlier agent's state, which is better than half of the present one.
    pub fn apply(&mut self, services: &mut Services) -> Round {
        let mut round = Round::default();
        if !self.store.is_complete() {
            return round;
        }
        self.store.settle(Instant::now());
        let mut changed = self.store.take_changed();
        changed.append(&mut self.failed);
        for name in changed {
            round.services += 1;
            let mut plan = self.plan(&name);
            self.problems.set_excess(&name, budget::fit(&mut plan, self.budget));
            round.health_checks_changed |= self.note_health_check(&name, plan.health_check);
            let errors = self.apply_service(services, &name, plan);
            round.full.extend(errors.iter().filter_map(WriteError::full));
            round.failed += usize::from(!self.note_failure(&name, &errors));
        }
        round.triggers = self.applied_triggers();
        if !self.pruned {
            self.prune(services);
            self.pruned = true;
        }
        round
    }

    /// Records the reply to load balancers' health checks of a service; true if it is new.
    fn note_health_check(&mut self, name: &ObjectName, check: Option<HealthCheck>) -> bool {
        match check {
            Some(check) => self.health_checks.insert(name.clone(), check) != Some(check),
            None => self.health_checks.remove(name).is_some(),
        }
    }

    /// Takes the triggers of services that are in the maps now.
    fn applied_triggers(&mut self) -> Vec<Trigger> {
        let mut triggers = std::mem::take(&mut self.triggers);
        triggers.extend(self.store.take_triggers().into_iter().filter(|trigger| trigger.at > self.started));
        let (waiting, applied) =
            triggers.into_iter().partition(|trigger| self.failed.contains(&trigger.service));
        self.triggers = waiting;
        applied
    }

    fn plan(&self, name: &ObjectName) -> ServicePlan {
        let mut plan = planner::plan_stored(&self.store, name, &self.node_name);
        if let Some(before) = self.planned.get(name) {
            plan.keep_lists(before);
        }
        for (port, ip) in local::leave_to_node(&mut plan, &self.local_addresses) {
            info!("service {port}: {ip} is an address of this node: left to the program that serves it here");
        }
        plan
    }

    /// Applies a service's plan; returns failures to be retried. They concern this service alone.
    fn apply_service(
        &mut self,
        services: &mut Services,
        name: &ObjectName,
        plan: ServicePlan,
    ) -> Vec<WriteError> {
        let before = self.planned.remove(name).unwrap_or_default();
        self.counts.remove(&before);
        let before = before.ports;
        for change in changes(&before, &plan.ports) {
            self.journal.note(change);
        }
        let kept: HashSet<&PortName> = plan.ports.iter().map(|port| &port.name).collect();
        let mut errors = Vec::new();
        // Removals first: a frontend may pass from one port to another.
        let unremoved = self.unremoved.iter().filter(|port| port.service == *name);
        let mut gone: BTreeSet<PortName> =
            before.iter().map(|old| &old.name).chain(unremoved).cloned().collect();
        self.unremoved.retain(|port| !gone.contains(port));
        gone.retain(|port| !kept.contains(port));
        for port in gone {
            if let Err(error) = services.remove(&port) {
                errors.push(error);
                self.unremoved.insert(port);
            }
        }
        errors.extend(plan.ports.iter().filter_map(|port| services.apply(port).err()));
        self.note_plan(name.clone(), plan);
        errors
    }

    /// Records the failures of a service; true if there were none.
    fn note_failure(&mut self, name: &ObjectName, errors: &[WriteError]) -> bool {
        self.problems.set_failure(name, errors);
        if !errors.is_empty() {
            self.failed.insert(name.clone());
        }
        errors.is_empty()
    }

    /// Keeps a plan that is in effect, where there was none.
    fn note_plan(&mut self, name: ObjectName, plan: ServicePlan) {
        if !plan.ports.is_empty() {
            self.counts.add(&plan);
            self.planned.insert(name, plan);
        }
    }

    /// Removes services of an earlier agent that no longer exist.
    fn prune(&mut self, services: &mut Services) {
        let ports = self.planned.values().flat_map(|plan| &plan.ports);
        let planned: HashSet<&PortName> = ports.map(|port| &port.name).collect();
        let gone: Vec<PortName> =
            services.port_names().filter(|name| !planned.contains(name)).cloned().collect();
        for name in gone {
            self.journal
                .note(format_args!("service {name} ({}) removed: it went while no agent ran", name.protocol));
            if let Err(error) = services.remove(&name) {
                let service = name.service.clone();
                self.unremoved.insert(name);
                self.note_failure(&service, &[error]);
            }
        }
        services.release_stale_filter_bits();
        // Everything that existed at the start is logged by now.
        self.journal.turn_page(Instant::now());
    }
}

#[cfg(test)]
mod tests;
