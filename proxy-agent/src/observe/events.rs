//! Kubernetes Events (`events.k8s.io/v1`): the agent's problems in `kubectl describe` of the Node or Service.
//!
//! They are for people, so nothing waits for them and nothing depends on them.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event as Content, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::model::objects::ObjectName;

/// Events that wait to be sent. More are dropped: only a repeating cause can produce them.
const QUEUE: usize = 64;
/// The same Event is not sent again for this long. The next time it is counted in the same Event object.
const REPEAT_AFTER: Duration = Duration::from_secs(5 * 60);
/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// The reporting controller.
const CONTROLLER: &str = "proxy-agent";

/// The object of an Event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// An Event for users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its object.
    pub about: About,
    /// Something is wrong.
    pub warning: bool,
    /// Why, in one CamelCase word; kube-proxy's where it has one.
    pub reason: &'static str,
    /// The action, in one CamelCase word.
    pub action: &'static str,
    /// In words.
    pub note: String,
}

impl Event {
    /// The agent has started.
    pub fn starting() -> Self {
        let note = concat!("proxy-agent ", env!("CARGO_PKG_VERSION"));
        Self {
            about: About::Node,
            warning: false,
            reason: "Starting",
            action: "StartKubeProxy",
            note: note.into(),
        }
    }

    /// An address for probes or scrapes is not available.
    pub fn server_failed(reason: &'static str, note: &str) -> Self {
        Self { about: About::Node, warning: true, reason, action: "StartKubeProxy", note: note.into() }
    }

    /// The kernel's connection tracking cannot be set. kube-proxy has a reason for want of a mount that can be written to.
    pub fn conntrack_failed(is_read_only: bool, note: &str) -> Self {
        let reason = if is_read_only { "readOnlySysFS" } else { "FailedToSetConntrack" };
        Self::server_failed(reason, note)
    }

    /// A Service is not served as it should be.
    pub fn service_problem(service: ObjectName, reason: &'static str, note: &str) -> Self {
        let about = About::Service(service);
        Self { about, warning: true, reason, action: "Program", note: shorten(note) }
    }

    /// Something else detached programs, which were attached again.
    pub fn hooks_restored(note: &str) -> Self {
        Self::of_node("HooksRestored", "Attach", note)
    }

    /// Something is wrong with this node.
    pub fn of_node(reason: &'static str, action: &'static str, note: &str) -> Self {
        Self { about: About::Node, warning: true, reason, action, note: shorten(note) }
    }

    /// The health check node port of a Service is not available.
    pub fn service_health_failed(service: ObjectName, note: &str) -> Self {
        Self {
            about: About::Service(service),
            warning: true,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            note: note.into(),
        }
    }
}

/// The API server takes notes of 1,024 bytes.
fn shorten(note: &str) -> String {
    const MOST: usize = 1000;
    let end = (0..=MOST.min(note.len())).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
    if end < note.len() { format!("{}...", &note[..end]) } else { note.to_owned() }
}

/// Takes Events. Clones send to the same place.
#[derive(Clone, Debug, Default)]
pub struct Events {
    queue: Option<mpsc::Sender<Event>>,
}

impl Events {
    /// Without an API server: nothing is sent.
    pub fn nowhere() -> Self {
        Self::default()
    }

    /// Sends to the API server, until cancelled.
    pub fn to(client: Client, node_name: &str, cancel: CancellationToken) -> Self {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(node_name.to_owned()) };
        let sending = Sending {
            recorder: Recorder::new(client, reporter),
            node_name: node_name.to_owned(),
            logged: HashMap::new(),
            allowance: Allowance::new(Instant::now()),
            failed_before: false,
        };
        tokio::spawn(async move { cancel.run_until_cancelled(sending.run(inbox)).await });
        Self { queue: Some(queue) }
    }

    /// Sends an Event later, or never: if the same one was sent lately, if too many wait, if the API server does not take
    /// it. Never waits.
    pub fn send(&self, event: Event) {
        let Some(queue) = &self.queue else { return };
        if let Err(error) = queue.try_send(event) {
            debug!("an Event is not sent: {error}");
        }
    }
}

/// The task that sends.
struct Sending {
    recorder: Recorder,
    node_name: String,
    /// The Events sent, and when.
    logged: HashMap<(About, &'static str), Instant>,
    allowance: Allowance,
    failed_before: bool,
}

/// How many Events about Services may be sent: a cluster may have very many Services, and as many nodes that report the same.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    /// The most Events at once.
    const MOST: u32 = 25;
    /// After this time there is one more.
    const REFILL: Duration = Duration::from_secs(10);

    fn new(now: Instant) -> Self {
        Self { left: Self::MOST, since: now }
    }

    /// Whether one may be sent now.
    fn take(&mut self, now: Instant) -> bool {
        while self.left < Self::MOST && now.saturating_duration_since(self.since) >= Self::REFILL {
            self.left += 1;
            self.since += Self::REFILL;
        }
        if self.left == Self::MOST {
            self.since = now;
        }
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }
}

impl Sending {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        while let Some(event) = inbox.recv().await {
            self.logged.retain(|_, at| at.elapsed() < REPEAT_AFTER);
            let key = (event.about.clone(), event.reason);
            if self.logged.contains_key(&key) {
                continue;
            }
            if matches!(event.about, About::Service(_)) && !self.allowance.take(Instant::now()) {
                debug!("an Event {} is not sent: there were too many", event.reason);
                continue;
            }
            if self.publish(event).await {
                self.logged.insert(key, Instant::now());
            }
        }
    }

    /// Returns whether it worked.
    async fn publish(&mut self, event: Event) -> bool {
        let Event { about, warning, reason, action, note } = event;
        let reference = self.reference(about);
        let content = Content {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            note: Some(note).filter(|note| !note.is_empty()),
            action: action.to_owned(),
            secondary: None,
        };
        let error = match timeout(PATIENCE, self.recorder.publish(&content, &reference)).await {
            Ok(Ok(())) => {
                self.failed_before = false;
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer for {PATIENCE:?}"),
        };
        if !self.failed_before {
            warn!("the API server did not take Event {reason}: {error}; services do not depend on it");
            self.failed_before = true;
        }
        false
    }

    fn reference(&self, about: About) -> ObjectReference {
        let api_version = Some("v1".to_owned());
        match about {
            // kubelet and kube-proxy give a Node's name for its UID; `kubectl describe node` looks for that.
            About::Node => ObjectReference {
                api_version,
                kind: Some("Node".into()),
                name: Some(self.node_name.clone()),
                uid: Some(self.node_name.clone()),
                ..ObjectReference::default()
            },
            About::Service(name) => ObjectReference {
                api_version,
                kind: Some("Service".into()),
                namespace: Some(name.namespace.to_string()),
                name: Some(name.name.to_string()),
                ..ObjectReference::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_not_very_many_events_about_services() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let count = |allowance: &mut Allowance, now| (0..100).filter(|_| allowance.take(now)).count();
        assert_eq!(count(&mut allowance, start), 25);
        assert_eq!(count(&mut allowance, start + Duration::from_secs(60)), 6);
        assert_eq!(count(&mut allowance, start + Duration::from_secs(65)), 0);
        assert_eq!(count(&mut allowance, start + Duration::from_secs(3600)), 25);
    }

    #[test]
    fn notes_fit() {
        assert_eq!(shorten("no room"), "no room");
        let long = shorten(&"\u{e9}".repeat(2000));
        assert!(long.ends_with("\u{e9}...") && long.len() <= 1003, "{}", long.len());
    }
}
