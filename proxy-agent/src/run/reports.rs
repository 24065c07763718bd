//! Where the parts of the running agent report their state.

use std::sync::Arc;

use crate::observe::{Events, Health, Metrics};

/// Health, metrics and Events. Clones are the same.
#[derive(Clone)]
pub(super) struct Reports {
    pub(super) health: Arc<Health>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Events,
}

#[cfg(test)]
impl Reports {
    /// For tests: reports that are not read.
    pub(super) fn nowhere() -> Self {
        use std::{path::Path, time::Duration};

        use tokio::sync::watch;

        use crate::{
            datapath::pins::Pins, flow_gc, socket_termination, source::SourceState,
            source::kube::RequestCounts,
        };

        let (_, source) = watch::channel(SourceState::default());
        let health = Arc::new(Health::new(source.clone(), Duration::ZERO));
        let (counts, sweeps) = (socket_termination::Counts::default(), flow_gc::Counts::default());
        let pins = Pins::new(Path::new("/no/such/pins"));
        let metrics = Arc::new(Metrics::new(pins, source, &counts, &sweeps, &RequestCounts::default()));
        Self { health, metrics, events: Events::nowhere() }
    }
}
