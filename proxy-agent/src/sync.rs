//! From the store to the data path: plans what changed, and applies what differs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::SystemTime,
};

use ipnet::IpNet;
use tracing::{error, info, warn};

use crate::{
    datapath::Services,
    model::{
        changes::changes,
        objects::{Change, Node, ObjectName},
        plan::{Frontend, HealthCheck, IpFamily, PortName, ServicePlan},
        planner,
        store::{Store, Trigger},
    },
    tally::Tally,
};

pub use crate::tally::NoLocalEndpoints;

/// The store, and what was planned from it.
pub struct Sync {
    node_name: String,
    store: Store,
    planned: HashMap<ObjectName, ServicePlan>,
    tally: Tally,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    /// Services whose last change the maps did not take: tried again with every change.
    failed: BTreeSet<ObjectName>,
    /// Addresses of this node. A cluster IP among them is served by somebody here (NodeLocal DNSCache), not by us; a load
    /// balancer's has ports of the node besides those of Services.
    local_addresses: BTreeSet<IpAddr>,
    pruned: bool,
    /// When this began: what happened before says nothing about how fast we are.
    started: SystemTime,
    /// When what waits to be applied happened.
    triggers: Vec<Trigger>,
}

/// What a round of [`Sync::apply`] did.
#[derive(Debug, Default)]
pub struct Round {
    /// Services that were looked at.
    pub services: usize,
    /// The changes of endpoints that are in the maps now, since the agent began; those of services in `error` come later.
    pub triggers: Vec<Trigger>,
    /// [`Sync::health_checks`] are others now.
    pub health_checks_changed: bool,
    /// Why the maps of some service port could not be written: the last such error. All are logged.
    pub error: Option<anyhow::Error>,
}

impl Sync {
    /// Nothing known, nothing planned.
    pub fn new(node_name: &str) -> Self {
        Self {
            node_name: node_name.to_owned(),
            store: Store::new(),
            planned: HashMap::new(),
            tally: Tally::default(),
            health_checks: BTreeMap::new(),
            failed: BTreeSet::new(),
            local_addresses: BTreeSet::new(),
            pruned: false,
            started: SystemTime::now(),
            triggers: Vec::new(),
        }
    }

    /// Takes in what a source says.
    pub fn take(&mut self, change: Change) {
        self.store.apply(change);
    }

    /// Addresses of the Node object, once it is known.
    pub fn node_addresses(&self) -> &[IpAddr] {
        self.store.node().map_or(&[], |node| &node.addresses)
    }

    /// This node as its object says; none if nothing was ever said about it. Stays when the object goes.
    pub fn node(&self) -> Option<&Node> {
        self.store.node()
    }

    /// Should load balancers send new connections here (KEP-3836)? Not if the Node is gone, or about to be. None: nothing
    /// was said about it, as in manifests without one.
    pub fn node_is_eligible(&self) -> Option<bool> {
        if self.store.node_is_gone() { Some(false) } else { self.store.node().map(|node| !node.leaving) }
    }

    /// The ranges of service addresses that ServiceCIDRs give.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.store.service_cidrs()
    }

    /// What is to be answered on `healthCheckNodePort`s.
    pub fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_checks
    }

    /// Ports of a family that no connection reaches here for want of a local endpoint.
    pub fn no_local_endpoints(&self, family: IpFamily) -> NoLocalEndpoints {
        self.tally.no_local_endpoints(family)
    }

    /// Has any service source ranges?
    pub fn has_source_ranges(&self) -> bool {
        self.tally.with_source_ranges() > 0
    }

    /// Is there a service that sockets alone do not serve: of SCTP, or for some clients only?
    pub fn needs_packets(&self) -> bool {
        self.tally.sctp() > 0 || self.has_source_ranges()
    }

    /// Is there a service whose last change the maps did not take?
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Has everything been listed?
    pub fn is_complete(&self) -> bool {
        self.store.is_complete()
    }

    /// Notes the node's own addresses; plans again what they change.
    pub fn set_local_addresses(&mut self, addresses: &BTreeSet<IpAddr>) {
        if self.local_addresses == *addresses {
            return;
        }
        let changed: BTreeSet<IpAddr> =
            self.local_addresses.symmetric_difference(addresses).copied().collect();
        self.local_addresses.clone_from(addresses);
        let affected = self.store.all_services().filter(|service| {
            service.cluster_ips.iter().chain(&service.load_balancer_ips).any(|ip| changed.contains(ip))
        });
        self.failed.extend(affected.map(|service| service.name.clone()));
    }

    /// Brings the data path up to date with the store. Does nothing before the first lists are complete: until then
    /// the maps hold what an earlier agent knew, which is better than half of what there is.
    pub fn apply(&mut self, services: &mut Services) -> Round {
        let mut round = Round::default();
        if !self.store.is_complete() {
            return round;
        }
        let mut changed = self.store.take_changed();
        changed.append(&mut self.failed);
        for name in changed {
            round.services += 1;
            let plan = self.plan(&name);
            round.health_checks_changed |= self.note_health_check(&name, plan.health_check);
            if let Some(error) = self.apply_service(services, &name, plan) {
                self.failed.insert(name);
                round.error = Some(error);
            }
        }
        round.triggers = self.applied_triggers();
        if !self.pruned {
            self.prune(services);
            self.pruned = true;
        }
        round
    }

    /// Notes what load balancers are to be told of a service; true if that is new.
    fn note_health_check(&mut self, name: &ObjectName, check: Option<HealthCheck>) -> bool {
        match check {
            Some(check) => self.health_checks.insert(name.clone(), check) != Some(check),
            None => self.health_checks.remove(name).is_some(),
        }
    }

    /// Takes what happened to services that are in the maps now.
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
        for port in &mut plan.ports {
            port.frontends.retain(|frontend| match frontend {
                Frontend::ClusterIp(address) => {
                    let is_local = self.local_addresses.contains(&address.ip());
                    if is_local {
                        info!(
                            "service {}: {} is an address of this node: left to who serves it here",
                            port.name,
                            address.ip()
                        );
                    }
                    !is_local
                }
                // The node's own packets to its own address are for its own sockets.
                Frontend::ClusterAddress(ip) | Frontend::LoadBalancerAddress(ip) => {
                    !self.local_addresses.contains(ip)
                }
                _ => true,
            });
        }
        plan
    }

    /// Applies a service's plan; returns the last error, if any of its ports failed.
    fn apply_service(
        &mut self,
        services: &mut Services,
        name: &ObjectName,
        plan: ServicePlan,
    ) -> Option<anyhow::Error> {
        let before = self.planned.remove(name).unwrap_or_default();
        self.tally.remove(&before);
        let before = before.ports;
        for change in changes(&before, &plan.ports) {
            info!("{change}");
        }
        let kept: HashSet<&PortName> = plan.ports.iter().map(|port| &port.name).collect();
        let mut failed = None;
        // Removals first: a frontend may pass from one port to another.
        for old in before.iter().filter(|old| !kept.contains(&old.name)) {
            if let Err(error) = services.remove(&old.name) {
                error!("{error:#}");
                failed = Some(error);
            }
        }
        for port in &plan.ports {
            if let Err(error) = services.apply(port) {
                error!("{error:#}");
                failed = Some(error);
            }
        }
        self.note_plan(name.clone(), plan);
        failed
    }

    /// Keeps a plan that is in effect, where there was none.
    fn note_plan(&mut self, name: ObjectName, plan: ServicePlan) {
        if !plan.ports.is_empty() {
            self.tally.add(&plan);
            self.planned.insert(name, plan);
        }
    }

    /// Removes what an earlier agent served and is no more.
    fn prune(&mut self, services: &mut Services) {
        let ports = self.planned.values().flat_map(|plan| &plan.ports);
        let planned: HashSet<&PortName> = ports.map(|port| &port.name).collect();
        let gone: Vec<PortName> =
            services.port_names().filter(|name| !planned.contains(name)).cloned().collect();
        for name in gone {
            info!("service {name} ({}) removed: it went while no agent ran", name.protocol);
            if let Err(error) = services.remove(&name) {
                warn!("{error:#}");
            }
        }
        services.give_up_stale_filter_bits();
    }
}

#[cfg(test)]
mod tests;
