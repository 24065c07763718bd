//! Pods: each is served by the way that fits it. Looks are taken in the background, programs attached a few at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    future::pending,
    io,
    net::IpAddr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use super::{InterfaceController, ServiceNeeds};
use crate::{
    datapath::Datapath,
    net::{
        pods::{self, Changed, Events, Pod, Way},
        topology::PodPort,
    },
    observe::events::Event,
};

/// Events within this time are handled together.
const TOGETHER: Duration = Duration::from_millis(10);
/// A look that took long is not taken again before so many times as long: at most a fifth of a processor.
const REST: u32 = 4;
/// After this a look that failed is taken again.
const RETRY: Duration = Duration::from_secs(1);
/// How long programs are attached before other work has its turn.
const TURN: Duration = Duration::from_millis(50);
/// The same before the agent begins its work.
const FIRST_TURN: Duration = Duration::from_secs(2);

/// The pods of this node.
pub(in crate::run) struct Pods {
    /// `--pod-datapath auto`.
    is_auto: bool,
    /// Away during a look.
    looker: Option<pods::Pods>,
    looking: Option<JoinHandle<(pods::Pods, io::Result<Vec<Pod>>)>>,
    events: Option<Events>,
    changed: Changed,
    /// All interfaces of pods.
    ports: Vec<PodPort>,
    /// Some of those were not looked at.
    has_new: bool,
    /// When to look; none: when something changes or is due.
    at: Option<Instant>,
    /// Not before that.
    not_before: Instant,
    /// When the last look began.
    began: Instant,
    pods: BTreeMap<u32, Pod>,
    /// Interfaces that have or had programs: flows of these may live, so they stay there.
    kept: BTreeSet<u32>,
    /// The last logged warning.
    logged: String,
}

impl Pods {
    /// None yet. `before` are the network namespaces that packets served before.
    pub(super) fn new(is_auto: bool, before: &BTreeSet<u64>) -> Self {
        let events = is_auto.then(Events::listen).and_then(|events| {
            events
                .inspect_err(|error| {
                    warn!("cannot follow changes in pods ({error}): they are found within 30 s");
                })
                .ok()
        });
        Self {
            is_auto,
            looker: is_auto.then(|| pods::Pods::new(before.iter().copied().collect::<HashSet<_>>())),
            looking: None,
            events,
            changed: Changed::default(),
            ports: Vec::new(),
            has_new: false,
            at: None,
            not_before: Instant::now(),
            began: Instant::now(),
            pods: BTreeMap::new(),
            kept: BTreeSet::new(),
            logged: String::new(),
        }
    }

    /// Takes over which interfaces of pods there are, and leaves those that need programs: all, if `all` do.
    pub(super) fn choose(&mut self, ports: &mut Vec<PodPort>, all: bool) {
        if !self.is_auto {
            return;
        }
        if self.ports != *ports {
            self.ports.clone_from(ports);
            self.has_new = true;
            let there: BTreeSet<u32> = ports.iter().map(|port| port.index).collect();
            self.kept.retain(|index| there.contains(index));
            self.pods.retain(|index, _| there.contains(index));
        }
        *ports = self.chosen(all);
    }

    /// The pods that need programs.
    fn chosen(&self, all: bool) -> Vec<PodPort> {
        let needs =
            |port: &&PodPort| all || self.kept.contains(&port.index) || self.is_served_by_packets(port.index);
        self.ports.iter().filter(needs).cloned().collect()
    }

    fn is_served_by_packets(&self, index: u32) -> bool {
        self.pods.get(&index).is_some_and(|pod| pod.reason.way() == Way::Packets)
    }

    /// Looks for the first time, at these, if that was not done.
    pub(super) async fn first_check(&mut self, ports: &[PodPort]) -> Result<()> {
        if self.ports.is_empty() && !ports.is_empty() && self.looker.is_some() {
            self.ports = ports.to_vec();
            self.start();
            let found = self.finished().await?;
            self.take(found);
        }
        Ok(())
    }

    fn start(&mut self) {
        let Some(mut looker) = self.looker.take() else { return };
        let (ports, changed) = (self.ports.clone(), std::mem::take(&mut self.changed));
        (self.has_new, self.at, self.began) = (false, None, Instant::now());
        self.looking = Some(spawn_blocking(move || {
            let result = looker.look(&ports, &changed);
            (looker, result)
        }));
    }

    /// Resolves when a check has finished.
    async fn finished(&mut self) -> Result<Vec<Pod>> {
        let Some(looking) = &mut self.looking else { return pending().await };
        let result = looking.await;
        self.looking = None;
        let (looker, result) = result.context("looking at pods ended unexpectedly")?;
        self.looker = Some(looker);
        result.context("cannot look at the network namespaces of pods")
    }

    /// Resolves when pods were looked at, because of a change or because it was due, to all of them.
    pub(in crate::run) async fn found(&mut self) -> Vec<Pod> {
        loop {
            if self.looking.is_some() {
                match self.finished().await {
                    Ok(pods) => return pods,
                    Err(error) => {
                        self.warn_once(&format!("{error:#}"));
                        self.changed.anywhere = true;
                        self.not_before = Instant::now() + RETRY;
                    }
                }
                continue;
            }
            let Some(looker) = &self.looker else { return pending().await };
            if self.at.is_none() {
                if !self.has_new && self.changed.is_empty() {
                    let due = looker.due().map(Instant::from_std);
                    tokio::select! {
                        result = next(self.events.as_ref(), &mut self.changed) => self.follow(result),
                        () = until(due) => {}
                    }
                }
                self.at = Some(self.not_before.max(Instant::now() + TOGETHER));
            }
            let at = self.at;
            tokio::select! {
                result = next(self.events.as_ref(), &mut self.changed) => self.follow(result),
                () = until(at) => self.start(),
            }
        }
    }

    fn follow(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.events = None;
            self.warn_once(&format!(
                "cannot follow changes in pods any more ({error}): they are found within 30 s"
            ));
        }
    }

    fn warn_once(&mut self, warning: &str) {
        if self.logged != warning {
            warn!("{warning}");
            warning.clone_into(&mut self.logged);
        }
    }

    /// Takes over the result of a check.
    fn take(&mut self, found: Vec<Pod>) {
        self.not_before = Instant::now() + self.began.elapsed() * REST;
        for pod in found {
            let before = self.pods.get(&pod.index).map(|pod| &pod.reason);
            if before.is_none_or(|before| before.way() != pod.reason.way()) {
                match pod.reason.way() {
                    Way::Packets => {
                        info!("the pod at {} is served by packets: {}", pod.interface, pod.reason)
                    }
                    Way::Sockets if before.is_some() => {
                        info!("the pod at {} is served by sockets: {}", pod.interface, pod.reason);
                    }
                    Way::Sockets => {}
                }
            }
            // A pod that is gone meanwhile will be left out by `choose`.
            self.pods.insert(pod.index, pod);
        }
    }

    /// Cookies of the network namespaces whose sockets must be left alone, of pods that have programs.
    fn excluded(&self, has_programs: impl Fn(u32) -> bool) -> BTreeSet<u64> {
        let by_packets = self.pods.values().filter(|pod| pod.reason.way() == Way::Packets);
        by_packets.filter(|pod| has_programs(pod.index)).filter_map(|pod| pod.cookie).collect()
    }

    /// Adds pods' addresses to those of network namespaces.
    pub(in crate::run) fn add_addresses(&self, namespaces: &mut HashMap<u64, Vec<IpAddr>>) {
        for pod in self.pods.values().filter(|pod| !pod.addresses.is_empty()) {
            if let Some(cookie) = pod.cookie {
                namespaces.insert(cookie, pod.addresses.clone());
            }
        }
    }
}

async fn next(events: Option<&Events>, changed: &mut Changed) -> io::Result<()> {
    match events {
        Some(events) => events.next(changed).await,
        None => pending().await,
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

impl InterfaceController {
    /// Pods were looked at: serves each by its way.
    pub(in crate::run) fn follow_pods(
        &mut self,
        found: Vec<Pod>,
        needs: &ServiceNeeds,
        datapath: &mut Datapath,
    ) {
        self.pods.take(found);
        let mut topology = self.topology.clone();
        topology.pods = self.pods.chosen(self.all_pods_need_packets(needs));
        if topology.pods != self.topology.pods {
            if let Err(error) = datapath.follow(&topology) {
                error!("{error:#}");
            }
            self.topology = topology;
        }
    }

    /// Attaches programs to pods' interfaces for a moment; there may be more.
    pub(in crate::run) fn attach_more(&mut self, datapath: &mut Datapath) {
        self.attach_for(TURN, datapath);
    }

    /// The same before the agent begins to work.
    pub(in crate::run) fn attach_first(&mut self, datapath: &mut Datapath) {
        self.attach_for(FIRST_TURN, datapath);
    }

    fn attach_for(&mut self, time: Duration, datapath: &mut Datapath) {
        if datapath.has_pending_hooks() {
            datapath.attach_pending_hooks(std::time::Instant::now() + time);
        }
        for pod in &self.topology.pods {
            if datapath.serves_packets_of(pod.index) {
                self.pods.kept.insert(pod.index);
            }
        }
        // Only after packets are translated: a connection in between would be served by neither.
        let excluded = self.pods.excluded(|index| datapath.serves_packets_of(index));
        if let Err(error) = datapath.set_packet_pods(&excluded) {
            error!("{error:#}");
        }
        if !datapath.has_pending_hooks() {
            self.report_hooks(datapath);
            self.find_foreign_programs(datapath);
        }
    }

    /// Reports attached programs to metrics and health.
    pub(in crate::run) fn report_hooks(&self, datapath: &Datapath) {
        let failed: Vec<String> =
            datapath.failed_hooks().map(|(name, error)| format!("{name}: {error}")).collect();
        if let Some(first) = failed.first() {
            let note = format!("{} programs are not attached, among them {first}", failed.len());
            self.reports.events.send(Event::of_node("HookFailed", "Attach", &note));
        }
        self.reports.health.set_serves_outside(datapath.serves_outside());
        self.reports.metrics.set_hooks(datapath.hooks(), failed.len());
        self.reports.health.set_failed_hooks(failed);
    }
}
