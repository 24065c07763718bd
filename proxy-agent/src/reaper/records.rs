//! Where it is kept which backend a connected socket was translated to.

use std::collections::HashSet;

use anyhow::{Context as _, Result};
use proxy_common::layout::id::Id;

use super::{
    end::{Suspect, Target},
    noted::{self, Noted},
    walk::walk,
};
use crate::{
    datapath::{SocketReader, pins::Pins},
    net::sock_diag::Transport,
};

/// One of the two ways, as the kernel allows.
#[derive(Debug)]
pub enum Records {
    /// Sockets keep it themselves: socket storage.
    Sockets(SocketReader),
    /// Notes in maps, by the sockets' cookies: on kernels without socket storage.
    Notes(Pins),
}

impl Records {
    pub(super) fn reader(&self) -> Option<&SocketReader> {
        match self {
            Self::Sockets(reader) => Some(reader),
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

    /// All backends that connected sockets were translated to, and how many network namespaces could not be looked at.
    pub(super) fn backends(&self, transports: &HashSet<Transport>) -> Result<(HashSet<Id>, usize)> {
        match self {
            Self::Sockets(reader) => backends(reader, transports),
            Self::Notes(pins) => Ok((noted::read(pins)?.iter().map(|noted| noted.backend_id).collect(), 0)),
        }
    }
}

fn backends(reader: &SocketReader, transports: &HashSet<Transport>) -> Result<(HashSet<Id>, usize)> {
    let mut found = HashSet::new();
    let walked = walk(|sock_diag| {
        for transport in transports.iter().copied() {
            for socket in sock_diag.connected(transport, |_| true)? {
                found.extend(reader.backend(transport.into(), socket.local, socket.peer)?);
            }
        }
        Ok(())
    });
    // Where sockets cannot be listed, the first that is to be ended tells.
    Ok((found, walked.context("cannot walk through the network namespaces")?.failed))
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
