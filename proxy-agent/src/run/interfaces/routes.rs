//! Events of the node's network, and its known routes.

use std::{future::ready, time::Duration};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, stream, stream::BoxStream};
use tokio::time::Instant;
use tracing::warn;

use crate::net::{
    interfaces::{self, Happened, Interface, Known, News},
    routes::{self, MAX_HINTS, Route},
    topology::Topology,
    xfrm,
};

/// Interface changes come in bursts: looked at once, when they have settled for this long.
const SETTLE: Duration = Duration::from_millis(50);

/// Known routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    known: Known,
    /// How long it took to read the network.
    cost: Duration,
}

impl Routes {
    /// Checks of minor importance take a twentieth of the time at most.
    const REST: u32 = 20;

    pub(super) fn new(known: Known, cost: Duration) -> Self {
        Self { known, cost }
    }

    /// When to read the network because of an event; `None`: the event does not matter.
    pub(super) fn read_at(&self, happened: &Happened) -> Option<Instant> {
        let wait = match self.known.news(happened) {
            News::None => return None,
            News::Little => SETTLE.max(self.cost * Self::REST),
            News::Much => SETTLE,
        };
        Some(Instant::now() + wait)
    }
}

/// Notes attributes of routes that `bpf_fib_lookup` does not report.
pub(super) fn note_route_hints(routes: &[Route], interfaces: &[Interface], topology: &mut Topology) {
    topology.encapsulates = routes.iter().any(|route| route.encapsulates_by.is_some());
    match routes::hints(routes, interfaces) {
        Some(hints) => topology.hints = hints,
        None => topology.warnings.push(format!(
            "more than {MAX_HINTS} routes have an MTU or an encapsulation, or are below one that has: services' packets do not obey the MTU of \
             routes (but locked ones), and those to routes with an encapsulation have the address of another interface as source"
        )),
    }
}

/// Changes of the node's network: interfaces, addresses, routes, IPsec policies.
pub(in crate::run) struct Changes(BoxStream<'static, Option<Happened>>);

impl Changes {
    /// Follows them from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub(in crate::run) fn listen() -> Result<Self> {
        let interfaces = interfaces::changes()?.map(Some).chain(stream::once(ready(None)));
        let policies = xfrm::changes().context("cannot follow IPsec policies")?;
        Ok(Self(stream::select(interfaces, policies.map(|()| Some(Happened::Other))).boxed()))
    }

    /// The next one. Where some were lost, anything may have happened.
    ///
    /// # Errors
    /// When they cannot be followed any more.
    pub(in crate::run) async fn next(&mut self) -> Result<Happened> {
        let happened = self.0.next().await.flatten();
        if happened.is_none() {
            warn!("lost track of the interfaces; looking again");
            *self = Self::listen()?;
        }
        Ok(happened.unwrap_or(Happened::Other))
    }
}
