//! Makes connections of kernel NAT known before packets could be taken for requests to frontends, or their ports be given away.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tracing::{debug, warn};

use crate::{
    datapath::{outbound, pins::Pins},
    net::ports::PortRange,
};

/// Nothing else is applied meanwhile, so there is an end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads the kernel's connections when something new may meet them.
pub(super) struct Seeder {
    pub(super) pins: Pins,
    pub(super) snat_ports: PortRange,
}

impl Seeder {
    /// To be called before these UDP frontends are served and these source addresses used.
    pub(super) async fn seed(&self, frontends: HashSet<SocketAddr>, snat_sources: BTreeSet<IpAddr>) {
        let ours = outbound::Ours { frontends, snat_sources, snat_ports: self.snat_ports };
        if ours.is_empty() {
            return;
        }
        let pins = self.pins.clone();
        let work = tokio::task::spawn_blocking(move || outbound::seed(&pins, &ours));
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(result) => result.unwrap_or_else(|error| debug!("{error}")),
            Err(_) => warn!(
                "listing the kernel's connections takes longer than {PATIENCE:?}: until it is done, replies to \
                 connections that kernel NAT opened from ports of frontends may be taken for requests"
            ),
        }
    }
}
