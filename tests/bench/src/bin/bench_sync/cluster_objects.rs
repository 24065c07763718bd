//! The API server's objects, and the entries of the maps that result from them.

use std::time::Instant;

use anyhow::{Context as _, Result};
use proxy_common::layout::{id::Id, set::BackendSet};

use crate::{
    api::{Resource, event},
    fixture::{Agent, Fixture},
    maps::Maps,
    objects::{Service, Size},
};

/// All services of a cluster.
pub(crate) struct ClusterObjects {
    pub(crate) size: Size,
    pub(crate) services: Vec<Service>,
}

impl ClusterObjects {
    /// The initial state; the API server lists it.
    pub(crate) fn new(fixture: &Fixture, size: Size) -> Self {
        let services = (0..size.services).map(|index| Service::new(size, index)).collect();
        let cluster_objects = Self { size, services };
        cluster_objects.list(fixture);
        cluster_objects
    }

    /// Makes the API server list the present state.
    pub(crate) fn list(&self, fixture: &Fixture) {
        let services = self.services.iter().map(|service| service.service(1));
        fixture.api.set_list(Resource::Services, services);
        fixture.api.set_list(Resource::EndpointSlices, self.services.iter().map(|service| service.slice(1)));
    }

    /// Waits until every service is in the maps; since when, and their ids.
    pub(crate) fn until_programmed(&self, agent: &Agent, maps: &mut Maps) -> Result<(Instant, Vec<Id>)> {
        let mut ids = Vec::with_capacity(self.services.len());
        agent
            .until("all services", || {
                maps.follow()?;
                while let Some(service) = self.services.get(ids.len()) {
                    let id = maps.cluster_ip(service);
                    let Some(id) = id.filter(|id| maps.published(*id).count() as usize == service.endpoints)
                    else {
                        return Ok(None);
                    };
                    ids.push(id);
                }
                Ok(Some(Instant::now()))
            })
            .map(|programmed| (programmed, ids))
    }

    /// Fails unless the maps hold the endpoints of every service.
    pub(crate) fn check(&self, maps: &mut Maps, ids: &[Id]) -> Result<()> {
        ids.iter().zip(&self.services).try_for_each(|(id, service)| maps.check(*id, service))
    }

    /// Replaces endpoints of a service; returns the event for it.
    pub(crate) fn replace(&mut self, fixture: &Fixture, index: usize, count: usize) -> Vec<u8> {
        let service = &mut self.services[index];
        service.replace(count);
        event("MODIFIED", &service.slice(fixture.api.next_version()))
    }
}

/// The published sets of services at one moment.
pub(crate) struct Published(Vec<BackendSet>);

impl Published {
    pub(crate) fn now(maps: &Maps, ids: &[Id]) -> Self {
        Self(ids.iter().map(|id| maps.published(*id)).collect())
    }

    /// Waits until something else is published of every service.
    pub(crate) fn until_replaced(&self, agent: &Agent, maps: &mut Maps, ids: &[Id]) -> Result<Instant> {
        let mut replaced = 0;
        agent
            .until("changes", || {
                maps.follow_at_times()?;
                while let (Some(id), Some(before)) = (ids.get(replaced), self.0.get(replaced)) {
                    if maps.published(*id) == *before {
                        return Ok(None);
                    }
                    replaced += 1;
                }
                Ok(Some(Instant::now()))
            })
            .context("they were all sent")
    }
}
