//! Whether the node's service proxy works: the contents of `/healthz` and `/livez`.
//!
//! Path, port and format are a contract with cloud load balancers (KEP-3836).

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use crate::source::SourceState;

/// A change that may be applied and is not for longer than this makes the node unhealthy, and a loop that does not turn the agent:
/// twice kube-proxy's default sync period.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// The state of the agent's work. Share it in an `Arc`.
#[derive(Debug)]
pub struct Health {
    source: watch::Receiver<SourceState>,
    /// How long changes may wait.
    patience: Duration,
    work: Mutex<Work>,
    node_eligible: AtomicBool,
}

/// Whom an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Processes of the node: names of objects, interfaces and addresses are theirs to know.
    Node,
    /// For any client of the node's port: the kinds of problems, and how many.
    Anyone,
}

/// Which of the agents with one `--bpffs` this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// The one that writes.
    #[default]
    Active,
    /// Waits for another one to end or to hand over.
    Standby,
    /// Handed over to one that does not answer yet.
    Overtaken,
    /// Handed over.
    Retired,
}

impl Role {
    fn problem(self) -> Option<&'static str> {
        match self {
            Self::Active => None,
            Self::Standby => Some("standing by: another agent with the same --bpffs runs"),
            Self::Overtaken | Self::Retired => Some("handed over to another agent with the same --bpffs"),
        }
    }
}

#[derive(Debug)]
struct Work {
    role: Role,
    /// When the agent's loop last began a turn.
    last_turn: Instant,
    last_applied: Option<Timestamp>,
    /// An earlier agent left complete maps.
    inherited: bool,
    /// No program serves clients outside.
    deaf: bool,
    /// When the oldest change came that is not applied yet.
    pending: Option<Instant>,
    apply_error: Option<String>,
    failed_services: Vec<String>,
    network: Vec<String>,
    network_failure: Option<String>,
    failed_hooks: Vec<String>,
    failed_service_health: Vec<String>,
    drops: Vec<String>,
    /// By topic.
    others: BTreeMap<&'static str, Vec<String>>,
}

/// The answer to a health check.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// When everything was applied last: now if nothing is wrong.
    last_updated: Option<Timestamp>,
    current_time: Timestamp,
    /// Whether the node should get traffic from load balancers; not part of `/livez`.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Families,
    /// Problems in words, beyond kube-proxy's format. Not every problem makes the node unhealthy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

impl Report {
    /// Whether the answer is 200.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Whether the status code is 200, and the problems.
    pub(super) fn into_parts(self) -> (bool, Vec<String>) {
        (self.healthy, self.problems)
    }
}

/// Both families are applied together, so they are well or ill together.
#[derive(Debug, Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: FamilyStatus,
    #[serde(rename = "IPv6")]
    v6: FamilyStatus,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyStatus {
    last_updated: Option<Timestamp>,
    healthy: bool,
}

impl Health {
    /// Nothing applied yet, the node eligible; follows the state of the source. Changes may be made to wait for `min_sync_period`.
    pub fn new(source: watch::Receiver<SourceState>, min_sync_period: Duration) -> Self {
        let patience = STUCK_AFTER.saturating_add(min_sync_period);
        Self { source, patience, work: Mutex::new(Work::new()), node_eligible: AtomicBool::new(true) }
    }

    /// How the source is doing.
    pub(super) fn source(&self) -> SourceState {
        self.source.borrow().clone()
    }

    /// The agent's loop begins a turn.
    pub fn turns(&self) {
        self.work().last_turn = Instant::now();
    }

    /// The maps are those of an earlier agent that was synced with its source: services are programmed, though nothing was applied yet.
    pub fn inherit(&self) {
        self.work().inherited = true;
    }

    /// Whether any program is attached that serves clients outside.
    pub fn set_serves_outside(&self, serves: bool) {
        self.work().deaf = !serves;
    }

    /// Whether load balancers should send new connections to this node (KEP-3836). Not while its object is unknown, is
    /// being deleted, or has the taint `ToBeDeletedByClusterAutoscaler`. The proxy may be well all the same.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.node_eligible.store(eligible, Ordering::Relaxed);
    }

    /// Which of several agents this is now. An agent that handed over keeps reporting its last state until its successor
    /// answers; the successor has as long as any change.
    pub fn set_role(&self, role: Role) {
        let mut work = self.work();
        work.role = role;
        work.pending = (role == Role::Overtaken).then(Instant::now);
    }

    /// A change has come that must be applied.
    pub fn queued(&self) {
        self.work().pending.get_or_insert_with(Instant::now);
    }

    /// Everything that came is applied.
    pub fn applied(&self) {
        let mut work = self.work();
        work.last_applied = Some(Timestamp::now());
        work.pending = None;
        work.apply_error = None;
    }

    /// Applying failed as a whole, and will be tried again.
    pub fn failed(&self, error: &anyhow::Error) {
        let mut work = self.work();
        work.pending.get_or_insert_with(Instant::now);
        work.apply_error = Some(format!("{error:#}"));
    }

    /// Services that could not be programmed as they should be, for people; empty when all are. Each is its own problem: the node
    /// serves the others.
    pub fn set_failed_services(&self, failed: Vec<String>) {
        self.work().failed_services = failed;
    }

    /// Configured names and addresses that the node's network does not have, in words; empty when it has all.
    pub fn set_network(&self, network_warnings: Vec<String>) {
        self.work().network = network_warnings;
    }

    /// Why the node's network cannot be followed; `None` if it can.
    pub fn set_network_failure(&self, failure: Option<String>) {
        self.work().network_failure = failure;
    }

    /// Programs that are not attached where they should be, for people; empty when all are.
    pub fn set_failed_hooks(&self, failed: Vec<String>) {
        self.work().failed_hooks = failed;
    }

    /// Health check node ports that are not answered as they should be, for people; empty when all are.
    pub fn set_failed_service_health(&self, failed: Vec<String>) {
        self.work().failed_service_health = failed;
    }

    /// Packets that were dropped lately for lack of something, in words; empty without drops.
    pub fn set_drops(&self, drops: Vec<String>) {
        self.work().drops = drops;
    }

    /// Other problems of a part of the agent's work, in words; may be empty. They make no node unhealthy.
    pub fn set_problems(&self, about: &'static str, problems: Vec<String>) {
        self.work().others.insert(about, problems);
    }

    /// For `/healthz`: this node can serve. 503 until services are programmed for the first time, so that load balancers do not use this
    /// node too early, while no program serves clients outside, and while the node is not eligible. An API server that is away changes
    /// nothing.
    pub fn ready(&self, audience: Audience) -> Report {
        let eligible = self.node_eligible.load(Ordering::Relaxed);
        let work = self.work();
        let is_serving = matches!(work.role, Role::Active | Role::Overtaken);
        let well = is_serving && work.is_programmed(self.patience);
        self.report(&work, well, Some(eligible), audience)
    }

    /// Whether services are programmed as they should be, regardless of the node's eligibility: the part of
    /// Services' health checks that concerns the proxy.
    pub fn is_programmed(&self) -> bool {
        self.work().is_programmed(self.patience)
    }

    /// For `/livez`: the agent's loop turns. Nothing else counts: a restart repairs no Service, no API server and no kernel.
    pub fn live(&self, audience: Audience) -> Report {
        let work = self.work();
        // After a hand-over no work is left. Until then the successor has as long as a turn.
        let is_done = matches!(work.role, Role::Retired);
        let turns = is_done || work.last_turn.elapsed() <= STUCK_AFTER;
        self.report(&work, turns, None, audience)
    }

    fn report(&self, work: &Work, well: bool, node_eligible: Option<bool>, audience: Audience) -> Report {
        let now = Timestamp::now();
        let last_updated = |well| if well { Some(now) } else { work.last_applied };
        let family = FamilyStatus { last_updated: last_updated(well), healthy: well };
        let status = Families { v4: family, v6: family };
        let problems = self.problems(work, node_eligible, audience);
        let healthy = well && node_eligible.unwrap_or(true);
        let last_updated = last_updated(healthy);
        Report { last_updated, current_time: now, node_eligible, healthy, status, problems }
    }

    fn problems(&self, work: &Work, node_eligible: Option<bool>, audience: Audience) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(work.role.problem().map(str::to_owned));
        if node_eligible == Some(false) {
            problems.push("the Node object is unknown, or marks the node for removal".to_owned());
        }
        let source = self.source.borrow();
        if let Some(trouble) = source.trouble() {
            let detail = if trouble.detail.is_empty() { "" } else { ": " };
            problems.push(match audience {
                Audience::Node => format!("{}{detail}{}", trouble.message, trouble.detail),
                Audience::Anyone => "the source of Services cannot be followed".to_owned(),
            });
        }
        if work.deaf {
            problems.push("no program is attached at an uplink: clients outside are not served".to_owned());
        }
        if work.last_applied.is_none() {
            let what = if source.is_synced() { "are not applied yet" } else { "are not fully listed yet" };
            problems.push(format!("Services and EndpointSlices {what}"));
        }
        if let Some(error) = &work.apply_error {
            problems.push(match audience {
                Audience::Node => format!("cannot apply changes: {error}"),
                Audience::Anyone => "cannot apply changes".to_owned(),
            });
        }
        if let Some(failure) = &work.network_failure {
            problems.push(match audience {
                Audience::Node => failure.clone(),
                Audience::Anyone => "the node's network cannot be followed".to_owned(),
            });
        }
        let others = [
            ("Services could not be programmed as they should be", &work.failed_services),
            ("configured interfaces or addresses do not exist on this node", &work.network),
            ("programs could not be attached", &work.failed_hooks),
            ("health check ports could not be opened", &work.failed_service_health),
            ("kinds of packets were dropped lately", &work.drops),
        ];
        let parts = work.others.iter().map(|(about, problems)| (*about, problems));
        for (what, details) in others.into_iter().chain(parts) {
            match audience {
                Audience::Node => problems.extend(details.iter().cloned()),
                Audience::Anyone if details.is_empty() => {}
                Audience::Anyone => problems.push(format!("{what}: {}", details.len())),
            }
        }
        problems
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn new() -> Self {
        Self {
            role: Role::default(),
            last_turn: Instant::now(),
            last_applied: None,
            inherited: false,
            deaf: false,
            pending: None,
            apply_error: None,
            failed_services: Vec::new(),
            network: Vec::new(),
            failed_hooks: Vec::new(),
            network_failure: None,
            failed_service_health: Vec::new(),
            drops: Vec::new(),
            others: BTreeMap::new(),
        }
    }

    fn is_programmed(&self, patience: Duration) -> bool {
        let is_stuck = self.pending.is_some_and(|since| since.elapsed() > patience);
        (self.last_applied.is_some() || self.inherited) && !self.deaf && !is_stuck
    }
}

#[cfg(test)]
mod tests;
