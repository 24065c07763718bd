//! Where it is kept which sockets were translated to which backend.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use proxy_common::layout::id::Id;

use super::{
    end::{Suspect, Target},
    noted::{self, Noted},
    storage::Storage,
    walk,
};
use crate::{datapath::pins::Pins, net::sock_diag::Transport};

/// One of the two ways, as the kernel allows.
#[derive(Debug)]
pub enum Records {
    /// With each socket: socket storage.
    Sockets(Storage),
    /// In maps, by cookie: on kernels without socket storage.
    Notes(Pins),
}

impl Records {
    /// Whatever the programs of this agent write.
    ///
    /// # Errors
    /// When the maps cannot be opened.
    pub fn open(pins: &Pins, has_storage: bool) -> Result<Self> {
        Ok(if has_storage { Self::Sockets(Storage::open(pins)?) } else { Self::Notes(pins.clone()) })
    }

    pub(super) fn storage(&self) -> Option<&Storage> {
        match self {
            Self::Sockets(storage) => Some(storage),
            Self::Notes(_) => None,
        }
    }

    /// How to find the sockets of backends.
    pub(super) fn targets(&self, dead: &HashSet<(Transport, Id)>) -> Result<HashSet<Target>> {
        Ok(match self {
            Self::Sockets(_) => {
                dead.iter().map(|(transport, backend)| Target::Backend(*transport, *backend)).collect()
            }
            Self::Notes(pins) => suspects(&noted::read(pins)?, dead).map(Target::Socket).collect(),
        })
    }

    /// All backends that connected sockets were translated to; and how many network namespaces could not be looked at.
    pub(super) fn backends(&self, transports: &HashSet<Transport>) -> Result<(HashSet<Id>, usize)> {
        Ok(match self {
            Self::Sockets(storage) => {
                // Where sockets cannot be listed, the first that is to be ended tells.
                let (sockets, walked) = walk::translated(storage, transports)
                    .context("cannot walk through the network namespaces")?;
                let backends = sockets.iter().map(|socket| socket.translation.backend_id);
                (backends.collect(), walked.failed)
            }
            Self::Notes(pins) => (noted::read(pins)?.iter().map(|noted| noted.backend_id).collect(), 0),
        })
    }
}

/// Which of the noted sockets may be connected to a dead backend.
pub(super) fn suspects(noted: &[Noted], dead: &HashSet<(Transport, Id)>) -> impl Iterator<Item = Suspect> {
    noted.iter().flat_map(|noted| {
        [Transport::Tcp, Transport::Udp]
            .into_iter()
            .filter(|transport| dead.contains(&(*transport, noted.backend_id)))
            .map(|transport| Suspect { transport, cookie: noted.cookie, peer: noted.backend })
    })
}
