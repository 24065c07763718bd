//! The running agent's report about itself: the document of `/status`, which `proxy-agent status` shows.

use std::{collections::BTreeMap, time::SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Health, Metrics, health::Audience};
use crate::{datapath::Hook, source::SourceState};

/// Everything on one page.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's release.
    pub version: String,
    /// Its node's name.
    pub node: String,
    /// Its process.
    pub pid: u32,
    /// When it began.
    pub started: Timestamp,
    /// Time of this report.
    pub now: Timestamp,
    /// The result of `/healthz`.
    pub ready: bool,
    /// The result of `/livez`.
    pub alive: bool,
    /// Problems, in words.
    pub problems: Vec<String>,
    /// The API server in use.
    #[serde(default)]
    pub api_server: Option<String>,
    /// Its release.
    #[serde(default)]
    pub api_server_version: Option<String>,
    /// Watches of the source.
    pub watches: Vec<WatchStatus>,
    /// Served services.
    pub services: ServiceStatus,
    /// Attached programs.
    pub hooks: Vec<HookStatus>,
    /// Programs that are not attached where they should be.
    pub missing_hooks: i64,
    /// Maps whose fill is known.
    pub maps: Vec<MapStatus>,
    /// Flows by state, both families together, as they were counted last: about twice a minute.
    pub flows: BTreeMap<String, i64>,
}

/// One thing that is watched.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WatchStatus {
    /// Its name in the API, or the folder's path.
    pub name: String,
    /// It was listed completely.
    pub synced: bool,
    /// Time of the last event for it from the source.
    pub last_event: Option<Timestamp>,
    /// How often it was begun.
    pub starts: u64,
    /// How often it failed.
    pub failures: u64,
    /// Its present problem.
    pub trouble: Option<String>,
}

/// Served services, and changes that wait.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Service ports, counted per family.
    pub ports: i64,
    /// Addresses with port, and nodePorts.
    pub frontends: i64,
    /// Endpoints of service ports.
    pub endpoints: i64,
    /// Services that are not programmed as they should be.
    pub failed: i64,
    /// Changes of Services and EndpointSlices that were not processed yet, counted per family.
    pub pending_changes: i64,
    /// When changes were applied last.
    pub last_applied: Option<Timestamp>,
}

/// An attached program.
#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookStatus {
    /// Where.
    pub at: String,
    /// Which.
    pub program: String,
    /// The kind of attachment.
    pub how: String,
}

impl From<&Hook> for HookStatus {
    fn from(hook: &Hook) -> Self {
        Self { at: hook.at.clone(), program: hook.program.clone(), how: hook.how.to_owned() }
    }
}

/// How full a map is.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapStatus {
    /// The map.
    pub name: String,
    /// Entries in use.
    pub entries: i64,
    /// Entries that it has room for.
    pub capacity: u32,
}

impl Status {
    /// As things are now, of an agent that began at `started`.
    pub fn now(node: &str, started: Timestamp, health: &Health, metrics: &Metrics) -> Self {
        let (ready, problems) = health.ready(Audience::Node).into_parts();
        let source = health.source();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: node.to_owned(),
            pid: std::process::id(),
            started,
            now: Timestamp::now(),
            ready,
            alive: health.live(Audience::Node).is_healthy(),
            problems,
            watches: watches(&source),
            api_server: source.server,
            api_server_version: source.release.map(|release| release.git_version),
            services: metrics.services(),
            hooks: metrics.hooks(),
            missing_hooks: metrics.missing_hooks(),
            maps: metrics.maps(),
            flows: metrics.flows(),
        }
    }
}

fn watches(source: &SourceState) -> Vec<WatchStatus> {
    let status = |(name, watch): (&String, &crate::source::WatchState)| WatchStatus {
        name: name.clone(),
        synced: watch.synced,
        last_event: watch.last_event.and_then(timestamp),
        starts: watch.starts,
        failures: watch.failures,
        trouble: watch.trouble.as_ref().map(|trouble| trouble.message.clone()),
    };
    source.watches.iter().map(status).collect()
}

pub(super) fn timestamp(time: SystemTime) -> Option<Timestamp> {
    Timestamp::try_from(time).ok()
}
