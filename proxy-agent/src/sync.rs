//! From the store to the data path: plans what changed, and applies what differs.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use tracing::{error, info, warn};

use crate::{
    datapath::Services,
    model::{
        changes::changes,
        objects::{Change, Node, ObjectName, Protocol},
        plan::{Frontend, PortName, PortPlan},
        planner,
        store::Store,
    },
};

/// The store, and what was planned from it.
pub struct Sync {
    node_name: String,
    store: Store,
    planned: HashMap<ObjectName, Vec<PortPlan>>,
    /// Services whose last change the maps did not take: tried again with every change.
    failed: BTreeSet<ObjectName>,
    /// Addresses of this node. A cluster IP among them is served by somebody here (NodeLocal DNSCache), not by us.
    local_addresses: BTreeSet<IpAddr>,
    pruned: bool,
}

/// What a round of [`Sync::apply`] did.
#[derive(Debug, Default)]
pub struct Round {
    /// Services that were looked at.
    pub services: usize,
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
            failed: BTreeSet::new(),
            local_addresses: BTreeSet::new(),
            pruned: false,
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

    /// The Node object, once it is known.
    pub fn node(&self) -> Option<&Node> {
        self.store.node()
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
        let affected = self
            .store
            .all_services()
            .filter(|service| service.cluster_ips.iter().any(|ip| changed.contains(ip)));
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
            let plans = self.plan(&name);
            if let Some(error) = self.apply_service(services, &name, plans) {
                self.failed.insert(name);
                round.error = Some(error);
            }
        }
        if !self.pruned {
            self.prune(services);
            self.pruned = true;
        }
        round
    }

    fn plan(&self, name: &ObjectName) -> Vec<PortPlan> {
        let mut plans = planner::plan_stored(&self.store, name, &self.node_name);
        plans.retain(|plan| {
            let is_served = plan.name.protocol != Protocol::Sctp;
            if !is_served && !self.planned.contains_key(name) {
                warn!("service {}: SCTP is not served yet", plan.name);
            }
            is_served
        });
        for plan in &mut plans {
            plan.frontends.retain(|frontend| match frontend {
                Frontend::ClusterIp(address) => {
                    let is_local = self.local_addresses.contains(&address.ip());
                    if is_local {
                        info!(
                            "service {}: {} is an address of this node: left to who serves it here",
                            plan.name,
                            address.ip()
                        );
                    }
                    !is_local
                }
                _ => true,
            });
        }
        plans
    }

    /// Applies a service's plans; returns the last error, if any of its ports failed.
    fn apply_service(
        &mut self,
        services: &mut Services,
        name: &ObjectName,
        plans: Vec<PortPlan>,
    ) -> Option<anyhow::Error> {
        let before = self.planned.remove(name).unwrap_or_default();
        for change in changes(&before, &plans) {
            info!("{change}");
        }
        let kept: HashSet<&PortName> = plans.iter().map(|plan| &plan.name).collect();
        let mut failed = None;
        // Removals first: a frontend may pass from one port to another.
        for old in before.iter().filter(|old| !kept.contains(&old.name)) {
            if let Err(error) = services.remove(&old.name) {
                error!("{error:#}");
                failed = Some(error);
            }
        }
        for plan in &plans {
            if let Err(error) = services.apply(plan) {
                error!("{error:#}");
                failed = Some(error);
            }
        }
        if !plans.is_empty() {
            self.planned.insert(name.clone(), plans);
        }
        failed
    }

    /// Removes what an earlier agent served and is no more.
    fn prune(&mut self, services: &mut Services) {
        let planned: HashSet<&PortName> = self.planned.values().flatten().map(|plan| &plan.name).collect();
        let gone: Vec<PortName> =
            services.port_names().filter(|name| !planned.contains(name)).cloned().collect();
        for name in gone {
            info!("service {name} ({}) removed: it went while no agent ran", name.protocol);
            if let Err(error) = services.remove(&name) {
                warn!("{error:#}");
            }
        }
        services.drop_stale_filter_bits();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::model::objects::{Service, ServicePort, TrafficPolicy};

    fn knowing(protocols: &[Protocol]) -> (Sync, ObjectName) {
        let name = ObjectName::new("default", "web");
        let ports = protocols.iter().map(|protocol| ServicePort {
            name: protocol.to_string().into(),
            protocol: *protocol,
            port: 80,
            node_port: Some(30_080),
        });
        let mut sync = Sync::new("node");
        sync.take(Change::Service(Service {
            name: name.clone(),
            cluster_ips: vec!["10.96.0.10".parse().unwrap()],
            ports: ports.collect(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            ..Service::default()
        }));
        (sync, name)
    }

    #[test]
    fn sctp_ports_are_left_out_and_the_others_stay() {
        let (sync, name) = knowing(&[Protocol::Sctp, Protocol::Tcp]);
        let protocols: Vec<_> = sync.plan(&name).iter().map(|plan| plan.name.protocol).collect();
        assert_eq!(protocols, [Protocol::Tcp]);
    }

    /// NodeLocal DNSCache serves a cluster IP that it has put on an interface of the node.
    #[test]
    fn a_cluster_ip_of_this_node_is_left_to_who_serves_it() {
        let (mut sync, name) = knowing(&[Protocol::Tcp]);
        let frontends = |sync: &Sync| sync.plan(&name)[0].frontends.clone();
        let vip: SocketAddr = "10.96.0.10:80".parse().unwrap();
        assert_eq!(frontends(&sync), [Frontend::ClusterIp(vip), Frontend::NodePort(30_080)]);
        sync.set_local_addresses(&[vip.ip()].into());
        assert!(sync.has_failed(), "it is planned again");
        assert_eq!(frontends(&sync), [Frontend::NodePort(30_080)]);
    }
}
