//! The reconciler of Services: takes the source's changes, and updates the maps.

mod failures;
mod growth;
mod outbound;
mod quarantine;
mod sync_limiter;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use anyhow::Result;
use ipnet::IpNet;
use tracing::{debug, info, warn};

use self::{growth::Growing, outbound::Seeder, quarantine::Quarantine, sync_limiter::SyncLimiter};
use super::{interfaces::ServiceNeeds, reports::Reports};
use crate::{
    config::Settings,
    datapath::{Datapath, pins::Pins, services::Freed, synced},
    memory,
    model::{objects::Change, plan::IpFamily},
    net::topology::Topology,
    observe::{Listeners, ServiceHealth, service_health::Addresses},
    sync::{NoLocalEndpoints, Round, Sync},
};

/// Services, from the source's changes to the maps.
pub(super) struct ServiceReconciler {
    pub(super) sync: Sync,
    /// Everything that the source had was written once.
    is_synced: bool,
    pub(super) sync_limiter: SyncLimiter,
    /// Freed ids and slots that may still be read.
    pub(super) quarantine: Quarantine,
    /// Whether a node without a Node object may get traffic: true without an API server, which would have one.
    eligible_unknown: bool,
    /// The maps were synced with a source when this agent found them.
    is_inherited: bool,
    /// `--service-cidr`.
    service_cidrs: Vec<IpNet>,
    seeder: Seeder,
    service_health: ServiceHealth,
    growing: Growing,
    reports: Reports,
}

/// The result of [`ServiceReconciler::write`].
pub(super) struct Written {
    round: Round,
    /// When it began.
    started: Instant,
    /// Programs must be attached again.
    pub(super) has_lost_hooks: bool,
}

impl Written {
    /// How many Services were looked at.
    pub(super) fn services(&self) -> usize {
        self.round.services
    }
}

impl ServiceReconciler {
    /// With the services known already, and nothing written.
    pub(super) fn new(
        settings: &Settings,
        sync: Sync,
        pins: Pins,
        listeners: Listeners,
        reports: Reports,
    ) -> Self {
        Self {
            sync,
            is_synced: false,
            sync_limiter: SyncLimiter::new(settings.min_sync_period),
            quarantine: Quarantine::default(),
            eligible_unknown: settings.manifests.is_some(),
            is_inherited: false,
            service_cidrs: settings.service_cidrs.clone(),
            seeder: Seeder { pins, snat_ports: settings.snat_ports },
            service_health: ServiceHealth::new(reports.health.clone(), reports.events.clone())
                .with_listeners(listeners),
            growing: Growing::default(),
            reports,
        }
    }

    /// Notes whether the maps were synced with a source when this agent found them.
    pub(super) fn inherit(&mut self) {
        if synced::is_marked(&self.seeder.pins) {
            self.is_inherited = true;
            self.reports.health.inherit();
        }
    }

    /// Whether everything that the source had was written once.
    pub(super) fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// Takes in changes. True if the node's addresses are others now, which decide more than Services.
    pub(super) fn take(&mut self, changes: impl Iterator<Item = Change>) -> bool {
        let before = self.sync.node_addresses().to_vec();
        for change in changes {
            self.reports.metrics.queued(&change);
            self.sync.take(change);
        }
        self.update_eligibility();
        before != self.sync.node_addresses()
    }

    /// Whether load balancers should send new connections here, by the Node object. After a restart, an API server that is away does
    /// not make a node ineligible that served before.
    pub(super) fn update_eligibility(&self) {
        self.reports.health.set_node_eligible(self.is_eligible());
    }

    fn is_eligible(&self) -> bool {
        let unknown = self.eligible_unknown || (self.is_inherited && !self.sync.is_complete());
        self.sync.node_is_eligible().unwrap_or(unknown)
    }

    /// Something changed. Before the first lists are complete nothing is applied, and nothing is late: a restart would
    /// not make the source faster.
    pub(super) fn want_to_apply(&mut self) {
        if self.sync.is_complete() {
            self.reports.health.queued();
            self.sync_limiter.want();
        }
    }

    /// Requirements of Services on the node's network. `knows_sources`: it is known from which addresses sockets send.
    pub(super) fn needs(&self, knows_sources: bool) -> ServiceNeeds {
        ServiceNeeds {
            node_addresses: self.sync.node_addresses().to_vec(),
            packets: self.sync.needs_packets(knows_sources),
        }
    }

    /// Writes the changes into the maps.
    ///
    /// # Errors
    /// When the agent must be started again.
    pub(super) async fn write(&mut self, datapath: &mut Datapath, topology: &Topology) -> Result<Written> {
        let coming = self.sync.coming_udp_frontends(&topology.nodeport_addresses);
        self.seeder.seed(coming, BTreeSet::new()).await;
        let started = Instant::now();
        let (round, has_lost_hooks) = self.apply_services(datapath, &topology.snat_sources).await?;
        Ok(Written { round, started, has_lost_hooks })
    }

    /// Writes what depends on all Services, and reports the result. True if now, for the first time, everything is written that the
    /// source had.
    pub(super) async fn finish(&mut self, datapath: &mut Datapath, written: Written) -> bool {
        let Written { round, started, .. } = written;
        let cidrs = self.sync.service_cidrs().into_iter().chain(self.service_cidrs.iter().copied());
        let cidrs = datapath.set_service_cidrs(&cidrs.collect::<Vec<_>>());
        let metrics = &self.reports.metrics;
        metrics.set_usage(&datapath.services.usage());
        if round.failed == 0 && cidrs.is_ok() {
            metrics.applied(started.elapsed(), !self.is_synced);
        } else {
            metrics.failed();
        }
        self.report_failures(datapath, cidrs);
        for trigger in &round.triggers {
            self.reports.metrics.programmed(trigger.family, trigger.at);
        }
        for family in IpFamily::ALL {
            let NoLocalEndpoints { internal, external } = self.sync.no_local_endpoints(family);
            self.reports.metrics.set_no_local_endpoints(family, internal, external);
        }
        if round.health_checks_changed {
            self.service_health.update(self.sync.health_checks().clone()).await;
        }
        debug!(services = round.services, elapsed = ?started.elapsed(), "applied");
        !std::mem::replace(&mut self.is_synced, true)
    }

    /// Everything is written for the first time: marks the maps as synced, and removes what agents no longer need.
    pub(super) fn mark_synced(&self, datapath: &Datapath) {
        if let Err(error) = synced::mark(&self.seeder.pins) {
            warn!(
                "cannot note that the maps are synced: {error}; after a restart without API server this node is not ready"
            );
        }
        match self.seeder.pins.remove_other_layouts() {
            Ok(0) => {}
            Ok(count) => info!("removed {count} maps that another release left"),
            Err(error) => warn!("maps that another release left take memory: {error:#}"),
        }
        tokio::task::spawn_blocking(memory::give_back);
        let usage = datapath.services.usage();
        info!("synced with the source: {} service ports, {} endpoints", usage.service_ports, usage.backends);
    }

    /// Before the node serves new addresses: the programs must know the connections that it opened from there.
    pub(super) async fn prepare_addresses(
        &mut self,
        datapath: &mut Datapath,
        before: &Topology,
        now: &Topology,
    ) {
        if gains(&now.nodeport_addresses, &before.nodeport_addresses)
            || gains(&now.snat_sources, &before.snat_sources)
        {
            let frontends = datapath.services.udp_frontends(&now.nodeport_addresses);
            self.seeder.seed(frontends, now.snat_sources.clone()).await;
        }
    }

    /// The data path serves these addresses now. `restricted`: nodePorts only at some of them.
    pub(super) async fn follow_addresses(&mut self, topology: &Topology, restricted: bool) {
        self.sync.set_local_addresses(&topology.local_addresses);
        let at =
            if restricted { Addresses::These(topology.nodeport_addresses.clone()) } else { Addresses::Any };
        self.service_health.set_addresses(at).await;
    }

    /// Regular clean-up.
    pub(super) fn tidy(&mut self, datapath: &mut Datapath) {
        self.sync.flush_journal(Instant::now());
        datapath.services.expire_filter_bits(Instant::now());
    }

    /// Tries again to answer health checks of Services.
    pub(super) async fn retry_health_checks(&mut self) {
        self.service_health.retry().await;
    }

    /// No program reads this any more: it may be used again.
    pub(super) fn release(&self, datapath: &mut Datapath, freed: Vec<Freed>) {
        datapath.services.give_back(freed);
        self.reports.metrics.set_usage(&datapath.services.usage());
    }

    /// At the end of each turn: freed ids and slots wait until no program reads them.
    pub(super) fn end_turn(&mut self, datapath: &mut Datapath) {
        self.reports.metrics.set_service_health_failures(self.service_health.problems().len());
        self.quarantine.add(datapath.services.take_quarantine());
    }

    /// The part that keeps running when this agent hands over: replies to health checks.
    pub(super) fn into_service_health(self) -> ServiceHealth {
        self.service_health
    }
}

/// Whether there are any that were not there before.
fn gains(now: &BTreeSet<IpAddr>, before: &BTreeSet<IpAddr>) -> bool {
    !now.is_subset(before)
}
