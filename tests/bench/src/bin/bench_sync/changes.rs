//! One change at a time: from the event to the map.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use proxy_common::layout::id::Id;
use proxy_figures::quantile;

use crate::{
    api::{Resource, event},
    cluster_objects::{ClusterObjects, Published},
    fixture::{Agent, DEADLINE, Fixture},
    maps::Maps,
    objects::Service,
};

/// Between changes: long enough for the agent to come to rest.
const PAUSE: Duration = Duration::from_millis(10);
/// Between changes of other services, where there are such.
const CHURN: Duration = Duration::from_millis(1);
/// NodePorts that the services of [`creations`] get.
const FIRST_NODE_PORT: u16 = 30_500;

/// How long changes took, and their cost.
pub(crate) struct Changes {
    /// Microseconds each, sorted.
    times: Vec<f64>,
    /// Microseconds of CPU time of the agent per change, beyond what it takes when nothing changes.
    pub(crate) cpu: f64,
}

impl Changes {
    /// Microseconds.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        quantile(&self.times, part)
    }

    fn new(mut times: Vec<f64>, cpu: Duration, changes: usize) -> Self {
        times.sort_unstable_by(f64::total_cmp);
        Self { times, cpu: cpu.as_secs_f64() * 1e6 / changes as f64 }
    }
}

/// The agent's CPU time in a second in which nothing happens. The node's pod has no process, so that 3 s after the start it counts as a
/// machine of its own, and the programs for such pods are loaded: waits for that.
pub(crate) fn rest(agent: &Agent) -> Result<f64> {
    const LONG: Duration = Duration::from_secs(1);
    const AT_REST: f64 = 0.05;
    const START: Duration = Duration::from_secs(5);
    let first = Instant::now();
    loop {
        let (began, before) = (Instant::now(), agent.cpu()?);
        thread::sleep(LONG);
        let part = (agent.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
        if part < AT_REST && agent.started.elapsed() > START || first.elapsed() > DEADLINE {
            return Ok(part);
        }
    }
}

/// Replaces one endpoint of one service after the other, with other services changing all the time, or not.
pub(crate) fn endpoints(
    (fixture, agent, maps): (&Fixture, &Agent, &mut Maps),
    cluster_objects: &mut ClusterObjects,
    ids: &[Id],
    count: usize,
    churn: bool,
) -> Result<Changes> {
    let rest = rest(agent)?;
    let (began, before) = (Instant::now(), agent.cpu()?);
    let mut times = Vec::with_capacity(count);
    let mut other = Churn::new(cluster_objects, churn);
    for n in 0..count {
        other.for_a_while(fixture, cluster_objects)?;
        // A service here and one there, and none of those that churn.
        let index = (n * 7919 % (cluster_objects.services.len() / 2)) * 2;
        let change = cluster_objects.replace(fixture, index, 1);
        let published = Published::now(maps, &ids[index..=index]);
        let sent = Instant::now();
        fixture.api.send(Resource::EndpointSlices, &change)?;
        let visible = published.until_replaced(agent, maps, &ids[index..=index])?;
        times.push((visible - sent).as_secs_f64() * 1e6);
        maps.check(ids[index], &cluster_objects.services[index])?;
    }
    thread::sleep(PAUSE);
    let cpu = (agent.cpu()? - before).saturating_sub(began.elapsed().mul_f64(rest));
    Ok(Changes::new(times, cpu, count + other.sent))
}

/// Other services that change.
struct Churn {
    on: bool,
    next: usize,
    due: Instant,
    sent: usize,
}

impl Churn {
    fn new(cluster_objects: &ClusterObjects, on: bool) -> Self {
        Self { on, next: cluster_objects.services.len() / 3, due: Instant::now(), sent: 0 }
    }

    /// Lets some time pass; others change in it and just before its end.
    fn for_a_while(&mut self, fixture: &Fixture, cluster_objects: &mut ClusterObjects) -> Result<()> {
        let end = Instant::now() + PAUSE;
        if !self.on {
            thread::sleep(PAUSE);
            return Ok(());
        }
        loop {
            let now = Instant::now();
            if self.due <= now {
                self.next += 1;
                let index = (self.next * 6007 % (cluster_objects.services.len() / 2)) * 2 + 1;
                let change = cluster_objects.replace(fixture, index, 1);
                fixture.api.send(Resource::EndpointSlices, &change)?;
                self.sent += 1;
                self.due = (self.due + CHURN).max(now);
            } else if now >= end {
                return Ok(());
            }
            std::hint::spin_loop();
        }
    }
}

/// Creates services that were not there, with their endpoints, and deletes them again.
pub(crate) fn creations(
    (fixture, agent, maps): (&Fixture, &Agent, &mut Maps),
    cluster_objects: &ClusterObjects,
    count: usize,
    node_ports: bool,
) -> Result<Changes> {
    let rest = rest(agent)?;
    let (began, before) = (Instant::now(), agent.cpu()?);
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let mut service = Service::new(cluster_objects.size, cluster_objects.services.len() + n);
        service.node_port = node_ports.then_some(FIRST_NODE_PORT + n as u16);
        let version = fixture.api.next_version();
        let objects = [
            (Resource::Services, service.service(version)),
            (Resource::EndpointSlices, service.slice(version)),
        ];
        let events = |kind| objects.each_ref().map(|(resource, object)| (*resource, event(kind, object)));
        let (added, deleted) = (events("ADDED"), events("DELETED"));
        thread::sleep(PAUSE);
        let sent = Instant::now();
        added.iter().try_for_each(|(resource, event)| fixture.api.send(*resource, event))?;
        let find = |maps: &Maps| match service.node_port {
            Some(port) => maps.node_port(port),
            None => maps.cluster_ip(&service),
        };
        let id = agent.until("a new service", || {
            maps.follow_at_times()?;
            Ok(find(maps).filter(|id| maps.published(*id).count() as usize == service.endpoints))
        })?;
        times.push(sent.elapsed().as_secs_f64() * 1e6);
        maps.check(id, &service)?;
        deleted.iter().try_for_each(|(resource, event)| fixture.api.send(*resource, event))?;
        agent.until("a service to go", || Ok(find(maps).is_none().then_some(())))?;
    }
    thread::sleep(PAUSE);
    let cpu = (agent.cpu()? - before).saturating_sub(began.elapsed().mul_f64(rest));
    // Each is created and deleted.
    Ok(Changes::new(times, cpu, 2 * count))
}

/// A rolling update.
pub(crate) struct Rolling {
    /// From the first event to the last service in the maps.
    pub(crate) time: Duration,
    /// CPU time of the agent.
    pub(crate) cpu: Duration,
    /// Events.
    pub(crate) events: usize,
}

/// Replaces a tenth of all endpoints, in all services, as fast as the agent takes it.
pub(crate) fn rolling(
    (fixture, agent, maps): (&Fixture, &Agent, &mut Maps),
    cluster_objects: &mut ClusterObjects,
    ids: &[Id],
) -> Result<Rolling> {
    let tenth = cluster_objects.size.endpoints.div_ceil(10);
    let events: Vec<_> = (0..cluster_objects.services.len())
        .flat_map(|index| cluster_objects.replace(fixture, index, tenth))
        .collect();
    let published = Published::now(maps, ids);
    let (sent, before) = (Instant::now(), agent.cpu()?);
    fixture.api.send(Resource::EndpointSlices, &events)?;
    let visible = published.until_replaced(agent, maps, ids)?;
    let cpu = agent.cpu()? - before;
    cluster_objects.check(maps, ids)?;
    Ok(Rolling { time: visible - sent, cpu, events: cluster_objects.services.len() })
}
