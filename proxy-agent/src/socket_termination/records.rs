//! Where the translation of a connected socket is stored.

use std::collections::HashSet;

use anyhow::{Context as _, Result};

use super::{
    end::{Suspect, Target, is_target},
    noted::{self, Noted},
    walk::walk,
};
use crate::{
    datapath::{Kept, SocketReader, pins::Pins},
    net::sock_diag::Transport,
};

/// One of the two ways, as the kernel allows.
#[derive(Debug)]
pub enum Records {
    /// Cells, and the storage of sockets themselves.
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

    /// How to find the sockets of backends and frontends that are gone.
    pub(super) fn targets(&self, gone: HashSet<Target>) -> Result<HashSet<Target>> {
        Ok(match self {
            Self::Sockets(_) => gone,
            Self::Notes(pins) => suspects(&noted::read(pins)?, &gone).map(Target::Socket).collect(),
        })
    }

    /// All that connected sockets keep, and how many network namespaces could not be looked at. Of notes it is not known
    /// which kind of socket they are of.
    pub(super) fn kept(&self, transports: &HashSet<Transport>) -> Result<(HashSet<Kept>, usize)> {
        match self {
            Self::Sockets(reader) => kept(reader, transports),
            Self::Notes(pins) => Ok((noted::read(pins)?.iter().map(|noted| noted.kept).collect(), 0)),
        }
    }
}

fn kept(reader: &SocketReader, transports: &HashSet<Transport>) -> Result<(HashSet<Kept>, usize)> {
    let mut found = HashSet::new();
    let walked = walk(|sock_diag| {
        for transport in transports.iter().copied() {
            for socket in sock_diag.connected(transport, |_| true)? {
                found.extend(reader.kept(&socket)?);
            }
        }
        Ok(())
    });
    // Where sockets cannot be listed, ending the first one reports it.
    Ok((found, walked.context("cannot walk through the network namespaces")?.failed))
}

/// Which of the noted sockets may be connected to a backend, or by a frontend, that is gone.
pub(super) fn suspects(noted: &[Noted], gone: &HashSet<Target>) -> impl Iterator<Item = Suspect> {
    noted.iter().flat_map(|noted| {
        [Transport::Tcp, Transport::Udp]
            .into_iter()
            .filter(|transport| is_target(gone, *transport, &noted.kept))
            .map(|transport| Suspect { transport, cookie: noted.cookie, peer: noted.backend })
    })
}
