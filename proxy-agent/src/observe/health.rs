//! Is the node's service proxy doing its work? What `/healthz` and `/livez` answer.
//!
//! Path, port and format are a contract with cloud load balancers (KEP-3836).

use std::{
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
    growth_failure: Option<String>,
    network: Vec<String>,
    network_failure: Option<String>,
    failed_hooks: Vec<String>,
    failed_service_health: Vec<String>,
    drops: Vec<String>,
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
    /// What is wrong, for people; beyond kube-proxy's format. Not everything here makes the node unhealthy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

impl Report {
    /// Whether the answer is 200.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Whether the answer is 200, and what is wrong.
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

    /// The maps are those of an earlier agent that was in step with its source: services are programmed, though nothing was applied yet.
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

    /// Which of several agents this is now. One that handed over says what it said before, until its successor answers; that has
    /// as long as any change.
    pub fn set_role(&self, role: Role) {
        let mut work = self.work();
        work.role = role;
        work.pending = (role == Role::Overtaken).then(Instant::now);
    }

    /// A change has come that is to be applied.
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

    /// Why maps cannot grow that should; none if they can.
    pub fn set_growth_failure(&self, failure: Option<String>) {
        self.work().growth_failure = failure;
    }

    /// What was asked for and the node's network does not have, for people; empty when it has all.
    pub fn set_network(&self, complaints: Vec<String>) {
        self.work().network = complaints;
    }

    /// Why the node's network cannot be followed; none if it can.
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

    /// Packets that were dropped lately for want of something, for people; empty when none were.
    pub fn set_drops(&self, drops: Vec<String>) {
        self.work().drops = drops;
    }

    /// For `/healthz`: this node can serve. 503 until services are programmed for the first time, so that nobody relies on this node too
    /// early, while no program serves clients outside, and while the node is not eligible. An API server that is away changes nothing.
    pub fn ready(&self) -> Report {
        let eligible = self.node_eligible.load(Ordering::Relaxed);
        let work = self.work();
        let is_serving = matches!(work.role, Role::Active | Role::Overtaken);
        self.report(&work, is_serving && work.is_programmed(self.patience), Some(eligible))
    }

    /// Whether services are programmed as they should be, whatever becomes of the node: what the health checks of
    /// Services say of the proxy.
    pub fn is_programmed(&self) -> bool {
        self.work().is_programmed(self.patience)
    }

    /// For `/livez`: the agent's loop turns. Nothing else: no Service, no API server and no kernel gets better by a restart.
    pub fn live(&self) -> Report {
        let work = self.work();
        // After a hand-over there is nothing left to do. Until then the successor has as long as a turn.
        let is_done = matches!(work.role, Role::Retired);
        let turns = is_done || work.last_turn.elapsed() <= STUCK_AFTER;
        self.report(&work, turns, None)
    }

    fn report(&self, work: &Work, well: bool, node_eligible: Option<bool>) -> Report {
        let now = Timestamp::now();
        let last_updated = |well| if well { Some(now) } else { work.last_applied };
        let family = FamilyStatus { last_updated: last_updated(well), healthy: well };
        let status = Families { v4: family, v6: family };
        let problems = self.problems(work, node_eligible);
        let healthy = well && node_eligible.unwrap_or(true);
        let last_updated = last_updated(healthy);
        Report { last_updated, current_time: now, node_eligible, healthy, status, problems }
    }

    fn problems(&self, work: &Work, node_eligible: Option<bool>) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(work.role.problem().map(str::to_owned));
        if node_eligible == Some(false) {
            problems.push("the Node object is unknown, or says that the node is going".to_owned());
        }
        let source = self.source.borrow();
        if let Some(trouble) = source.trouble() {
            let detail = if trouble.detail.is_empty() { "" } else { ": " };
            problems.push(format!("{}{detail}{}", trouble.message, trouble.detail));
        }
        if work.deaf {
            problems.push("no program is attached at an uplink: clients outside are not served".to_owned());
        }
        if work.last_applied.is_none() {
            let what = if source.is_synced() { "are not applied yet" } else { "are not fully listed yet" };
            problems.push(format!("Services and EndpointSlices {what}"));
        }
        problems.extend(work.apply_error.iter().map(|error| format!("cannot apply changes: {error}")));
        problems.extend(work.network_failure.clone());
        problems.extend(work.growth_failure.clone());
        let others = [
            &work.failed_services,
            &work.network,
            &work.failed_hooks,
            &work.failed_service_health,
            &work.drops,
        ];
        problems.extend(others.into_iter().flatten().cloned());
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
            growth_failure: None,
            network: Vec::new(),
            failed_hooks: Vec::new(),
            network_failure: None,
            failed_service_health: Vec::new(),
            drops: Vec::new(),
        }
    }

    fn is_programmed(&self, patience: Duration) -> bool {
        let is_stuck = self.pending.is_some_and(|since| since.elapsed() > patience);
        (self.last_applied.is_some() || self.inherited) && !self.deaf && !is_stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        // The last state of a source stays readable after the source is gone.
        Health::new(watch::channel(SourceState::default()).1, Duration::ZERO)
    }

    fn long_ago(health: &Health) {
        let since = Instant::now().checked_sub(STUCK_AFTER + Duration::from_secs(1));
        health.work().pending = Some(since.unwrap());
    }

    fn no_turn(health: &Health) {
        let since = Instant::now().checked_sub(STUCK_AFTER + Duration::from_secs(1));
        health.work().last_turn = since.unwrap();
    }

    #[test]
    fn alive_while_the_loop_turns_and_only_then() {
        let health = health();
        assert!(health.live().is_healthy());
        no_turn(&health);
        assert!(!health.live().is_healthy());
        health.turns();
        long_ago(&health);
        health.failed(&anyhow::anyhow!("no room"));
        health.set_serves_outside(false);
        assert!(health.live().is_healthy(), "a restart gives nobody room");
    }

    #[test]
    fn changes_may_wait_as_long_as_they_are_told_to() {
        let health = Health::new(watch::channel(SourceState::default()).1, Duration::from_secs(120));
        health.applied();
        long_ago(&health);
        assert_eq!(both(&health), (true, true));
    }

    #[test]
    fn what_an_earlier_agent_left_serves() {
        let health = health();
        health.inherit();
        assert_eq!(both(&health), (true, true));
        health.set_serves_outside(false);
        assert_eq!(both(&health), (false, true));
        let json = serde_json::to_value(health.ready()).unwrap();
        assert!(json["problems"][0].as_str().unwrap().contains("uplink"));
    }

    fn both(health: &Health) -> (bool, bool) {
        (health.ready().is_healthy(), health.live().is_healthy())
    }

    #[test]
    fn ready_once_applied_and_not_when_stuck() {
        let health = health();
        assert_eq!(both(&health), (false, true), "not programmed yet, but a restart would not help");
        health.queued();
        health.applied();
        assert_eq!(both(&health), (true, true));
        health.set_failed_services(vec!["service default/web: no room".into()]);
        assert_eq!(both(&health), (true, true), "the others are served");
        health.failed(&anyhow::anyhow!("no room"));
        assert_eq!(both(&health), (true, true), "it may yet succeed");
        long_ago(&health);
        assert_eq!(both(&health), (false, true));
        health.failed(&anyhow::anyhow!("no room"));
        health.queued();
        assert_eq!(both(&health), (false, true), "trying again does not start the clock anew");
        health.applied();
        assert_eq!(both(&health), (true, true));
    }

    #[test]
    fn one_of_several_agents_is_ready() {
        let health = health();
        health.set_role(Role::Standby);
        assert_eq!(both(&health), (false, true), "a restart would not help");
        let json = serde_json::to_value(health.ready()).unwrap();
        assert!(json["problems"][0].as_str().unwrap().starts_with("standing by"), "{json}");
        health.set_role(Role::Active);
        health.applied();
        assert_eq!(both(&health), (true, true));
        health.set_role(Role::Overtaken);
        assert_eq!(both(&health), (true, true), "the successor begins in a moment");
        long_ago(&health);
        no_turn(&health);
        assert_eq!(both(&health), (false, false), "it does not");
        health.set_role(Role::Retired);
        assert_eq!(both(&health), (false, true), "restarted, it would take over again");
    }

    #[test]
    fn a_node_that_goes_is_not_ready_but_its_proxy_is_well() {
        let health = health();
        health.applied();
        health.set_node_eligible(false);
        assert_eq!(both(&health), (false, true));
        assert!(health.is_programmed());
        let json = serde_json::to_value(health.ready()).unwrap();
        assert_eq!(json["nodeEligible"], false);
        assert_eq!(json["healthy"], false);
        assert_eq!(json["status"]["IPv6"]["healthy"], true, "the families are not to blame");
        assert!(json["problems"][0].as_str().unwrap().contains("Node object"));
        health.set_node_eligible(true);
        assert_eq!(both(&health), (true, true));
        long_ago(&health);
        assert!(!health.is_programmed());
    }

    #[test]
    fn the_answer_has_kube_proxys_fields_and_says_what_is_wrong() {
        let health = health();
        health.applied();
        let json = serde_json::to_value(health.ready()).unwrap();
        assert_eq!(json["healthy"], true);
        assert_eq!(json["nodeEligible"], true);
        assert_eq!(json["status"]["IPv4"]["healthy"], true);
        assert!(json["lastUpdated"].as_str().unwrap().ends_with('Z'));
        assert_eq!(json.get("problems"), None);
        assert_eq!(serde_json::to_value(health.live()).unwrap().get("nodeEligible"), None);

        health.failed(&anyhow::anyhow!("no room"));
        health.set_failed_services(vec!["service default/web: full".into()]);
        health.set_network(vec!["no interface has the address 192.0.2.7".into()]);
        health.set_failed_hooks(vec!["uplink_ingress at eth9: no such device".into()]);
        health.set_failed_service_health(vec!["port taken".into()]);
        health.set_drops(vec!["3 packets were dropped".into()]);
        let json = serde_json::to_value(health.ready()).unwrap();
        let expected = serde_json::json!([
            "cannot apply changes: no room",
            "service default/web: full",
            "no interface has the address 192.0.2.7",
            "uplink_ingress at eth9: no such device",
            "port taken",
            "3 packets were dropped"
        ]);
        assert_eq!(json["problems"], expected);
    }
}
