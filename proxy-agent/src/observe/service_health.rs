//! Answers load balancers' health checks at a Service's `healthCheckNodePort`: whether this node has endpoints of it.
//!
//! Status, headers and body are kube-proxy's, to the byte: cloud providers' health checks are made for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper::{StatusCode, header::HeaderName};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Events, Health, Listeners,
    events::Event,
    http::{self, Answer, Handler},
};
use crate::model::{objects::ObjectName, plan::HealthCheck};

/// How many endpoints a load balancer may weigh this node by.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Where health checks are answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Addresses {
    /// At every address of each family that the node has.
    #[default]
    Any,
    /// At these only: `--nodeport-addresses`.
    These(BTreeSet<IpAddr>),
}

/// The servers of all Services that want one.
pub struct ServiceHealth {
    health: Arc<Health>,
    events: Events,
    listeners: Listeners,
    addresses: Addresses,
    wanted: BTreeMap<ObjectName, HealthCheck>,
    open: BTreeMap<SocketAddr, Open>,
    problems: BTreeMap<ObjectName, String>,
}

/// A server at one address.
struct Open {
    checked: Arc<Checked>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

/// The health check of one Service.
struct Checked {
    service: ObjectName,
    local_endpoints: AtomicUsize,
}

impl ServiceHealth {
    /// Without open ports. Ports that cannot be opened are reported to `events`.
    pub fn new(health: Arc<Health>, events: Events) -> Self {
        Self {
            health,
            events,
            listeners: Listeners::default(),
            addresses: Addresses::default(),
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// Listens by these.
    #[must_use]
    pub fn with_listeners(mut self, listeners: Listeners) -> Self {
        self.listeners = listeners;
        self
    }

    /// Answers at these addresses from now on.
    pub async fn set_addresses(&mut self, addresses: Addresses) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.sync().await;
        }
    }

    /// Opens and closes servers so that each Service in `wanted` has one that reports the right number. A failure is
    /// logged, reported in an Event and in [`Self::problems`], and retried by a later [`Self::retry`].
    pub async fn update(&mut self, wanted: impl IntoIterator<Item = (ObjectName, HealthCheck)>) {
        let wanted = wanted.into_iter().collect();
        if self.wanted != wanted {
            self.wanted = wanted;
            self.sync().await;
        }
    }

    /// Retries what failed.
    pub async fn retry(&mut self) {
        if !self.problems.is_empty() {
            self.sync().await;
        }
    }

    /// Problems in words, by Service.
    pub fn problems(&self) -> &BTreeMap<ObjectName, String> {
        &self.problems
    }

    async fn sync(&mut self) {
        let mut problems = BTreeMap::new();
        let mut goal = self.goal(&mut problems);
        self.close_all_but(&goal).await;
        for open in self.open.values() {
            if let Some(check) = self.wanted.get(&open.checked.service) {
                open.checked.local_endpoints.store(check.local_endpoints, Ordering::Relaxed);
            }
        }
        goal.retain(|address, _| !self.open.contains_key(address));
        for (address, service) in goal {
            if let Err(error) = self.open(address, &service) {
                problems.insert(service, format!("cannot listen on {address}: {error}"));
            }
        }
        self.report(problems);
    }

    /// The Service to serve at each address. Of several Services that want one port, the one that has it keeps it.
    fn goal(&self, problems: &mut BTreeMap<ObjectName, String>) -> BTreeMap<SocketAddr, ObjectName> {
        let holders = self.open.iter().map(|(address, open)| (address.port(), &open.checked.service));
        let mut owners: BTreeMap<u16, &ObjectName> = holders
            .filter(|(port, service)| self.wanted.get(service).is_some_and(|check| check.port == *port))
            .collect();
        for (service, check) in &self.wanted {
            let owner = *owners.entry(check.port).or_insert(service);
            if owner != service {
                problems.insert(service.clone(), format!("port {} is that of service {owner}", check.port));
            }
        }
        let addresses = match &self.addresses {
            Addresses::Any => [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()].into(),
            Addresses::These(addresses) => addresses.clone(),
        };
        let at_all = |(port, service): (u16, &ObjectName)| {
            let service = service.clone();
            addresses.iter().map(move |ip| (SocketAddr::new(*ip, port), service.clone())).collect::<Vec<_>>()
        };
        owners.into_iter().flat_map(at_all).collect()
    }

    /// Closes servers that are not in the goal, or of another Service there. Their ports are free afterwards.
    async fn close_all_but(&mut self, goal: &BTreeMap<SocketAddr, ObjectName>) {
        let all = std::mem::take(&mut self.open);
        let (kept, stale): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(address, open)| goal.get(address) == Some(&open.checked.service));
        self.open = kept;
        for (address, open) in stale {
            open.cancel.cancel();
            if let Err(error) = open.task.await {
                warn!("health check server at {address}: {error}");
            }
            info!("service {}: health checks at {address} end", open.checked.service);
        }
    }

    fn open(&mut self, address: SocketAddr, service: &ObjectName) -> io::Result<()> {
        let listener = match self.listeners.bind_one_family(address) {
            Ok(listener) => listener,
            // A node of one family.
            Err(error) if address.ip().is_unspecified() && is_family_missing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let local_endpoints = self.wanted.get(service).map_or(0, |check| check.local_endpoints);
        let checked = Arc::new(Checked {
            service: service.clone(),
            local_endpoints: AtomicUsize::new(local_endpoints),
        });
        let cancel = CancellationToken::new();
        let handler = handler(checked.clone(), self.health.clone());
        let task = tokio::spawn(http::serve(listener, handler, cancel.clone()));
        info!("service {service}: answering health checks at {address}");
        self.open.insert(address, Open { checked, cancel, task });
        Ok(())
    }

    fn report(&mut self, problems: BTreeMap<ObjectName, String>) {
        for (service, problem) in &problems {
            if self.problems.get(service) != Some(problem) {
                warn!("service {service}: health checks are not answered: {problem}; trying again");
            }
            // Sent again when it lasts: the last one may not have arrived.
            let note = format!("health checks are not answered: {problem}");
            self.events.send(Event::service_health_failed(service.clone(), &note));
        }
        let words = problems.iter().map(|(service, problem)| format!("health check of {service}: {problem}"));
        self.health.set_failed_service_health(words.collect());
        self.problems = problems;
    }
}

impl Drop for ServiceHealth {
    fn drop(&mut self) {
        self.open.values().for_each(|open| open.cancel.cancel());
    }
}

fn is_family_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Answers every request.
fn handler(checked: Arc<Checked>, health: Arc<Health>) -> Handler {
    Arc::new(move |_| {
        let count = checked.local_endpoints.load(Ordering::Relaxed);
        let is_healthy = health.is_programmed();
        let well = count != 0 && is_healthy;
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let ObjectName { namespace, name } = &checked.service;
        // Names are DNS labels: there is nothing to escape in them.
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\
             \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {is_healthy}\n}}"
        );
        Answer::json(status, body).with(WEIGHT, count)
    })
}

#[cfg(test)]
mod tests;
