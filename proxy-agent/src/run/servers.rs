//! The agent's HTTP servers, and when they start.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::turn::Observed;
use crate::{
    config::{self, Settings},
    observe::{
        Events, Health, Listeners, Role, endpoints,
        events::Event,
        http::{self, Handler, Server},
    },
};

/// How often an address that another agent has is tried.
const AGAIN: Duration = Duration::from_secs(5);

/// The servers for health checks and metrics.
pub(super) struct Servers {
    all: Vec<One>,
    listeners: Listeners,
    events: Events,
    must_bind: bool,
    /// Until then they answer.
    cancel: CancellationToken,
    /// Until this agent steps aside.
    in_front: CancellationToken,
}

struct One {
    what: &'static str,
    address: SocketAddr,
    handler: Handler,
    /// The reason of an Event.
    failure: &'static str,
    is_open: bool,
}

impl Servers {
    /// None answers yet.
    pub(super) fn new(
        settings: &Settings,
        observed: &Observed,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Self {
        let Observed { health, metrics, listeners, .. } = observed;
        let one = |what, address, handler, failure| One { what, address, handler, failure, is_open: false };
        let all = vec![
            one(
                "health checks",
                settings.healthz_bind_address,
                endpoints::health(health, metrics),
                "FailedToStartProxierHealthcheck",
            ),
            one(
                "metrics",
                settings.metrics_bind_address,
                endpoints::metrics(metrics, health, &config::configz(settings), &settings.node_name),
                "FailedToStartMetricServer",
            ),
        ];
        Self {
            all,
            listeners: listeners.clone(),
            events: events.clone(),
            must_bind: settings.bind_address_hard_fail,
            cancel: cancel.clone(),
            in_front: cancel.child_token(),
        }
    }

    /// The agent's listeners.
    pub(super) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Before it serves, an agent answers at addresses that are free.
    pub(super) fn try_to_start(&mut self) {
        for one in self.all.iter_mut().filter(|one| !one.is_open) {
            match self.listeners.bind(one.address) {
                Ok(listener) => {
                    info!("answering {} at {}", one.what, one.address);
                    tokio::spawn(http::serve(listener, one.handler.clone(), self.in_front.clone()));
                    one.is_open = true;
                }
                Err(error) => debug!("cannot answer {} at {}: {error}", one.what, one.address),
            }
        }
    }

    /// Answers from now on.
    ///
    /// # Errors
    /// When an address is not available and `--bind-address-hard-fail` is given.
    pub(super) async fn start(&mut self) -> Result<()> {
        for one in self.all.iter_mut().filter(|one| !one.is_open) {
            let (events, reason) = (self.events.clone(), one.failure);
            let server = Server {
                what: one.what,
                address: one.address,
                handler: one.handler.clone(),
                must_bind: self.must_bind,
                on_failure: Box::new(move |why: &str| events.send(Event::server_failed(reason, why))),
            };
            server.start(&self.listeners, self.in_front.clone()).await?;
            one.is_open = true;
        }
        Ok(())
    }

    /// Leaves the addresses to the agent that took over. Those that it does not use are answered again.
    pub(super) fn step_aside(&mut self, health: &Arc<Health>) {
        self.in_front.cancel();
        for one in &self.all {
            let (address, handler, cancel) = (one.address, one.handler.clone(), self.cancel.clone());
            let health = health.clone();
            let answer = async move {
                let listeners = Listeners::default();
                loop {
                    tokio::time::sleep(AGAIN).await;
                    // Only now: the last connections of the shared listeners are answered in the old role.
                    health.set_role(Role::Retired);
                    if let Ok(listener) = listeners.bind(address) {
                        return http::serve(listener, handler, cancel).await;
                    }
                }
            };
            let cancel = self.cancel.clone();
            tokio::spawn(async move { cancel.run_until_cancelled(answer).await });
        }
    }
}
