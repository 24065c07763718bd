//! Finds sockets in all network namespaces and ends them.

use std::{collections::HashSet, io, net::SocketAddr};

use proxy_common::layout::id::Id;

use super::{
    storage::Storage,
    walk::{Walked, walk},
};
use crate::net::sock_diag::{Connected, SockDiag, SockDiagError, Transport};

/// A socket to be ended, if it is still connected to that peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Suspect {
    /// Which kind of socket.
    pub transport: Transport,
    /// The kernel's cookie of it.
    pub cookie: u64,
    /// The backend.
    pub peer: SocketAddr,
}

impl From<&Connected> for Suspect {
    fn from(socket: &Connected) -> Self {
        Self { transport: socket.transport, cookie: socket.cookie, peer: socket.peer }
    }
}

/// What is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// This socket.
    Socket(Suspect),
    /// Every socket that keeps that it was translated to this backend, and is still connected to it.
    Backend(Transport, Id),
}

impl Target {
    fn transport(&self) -> Transport {
        match self {
            Self::Socket(suspect) => suspect.transport,
            Self::Backend(transport, _) => *transport,
        }
    }
}

/// How ending sockets went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Sockets that were ended.
    pub ended: HashSet<Suspect>,
    /// No namespace was walked through where there was nothing to look for.
    pub walked: Walked,
}

/// Ends the sockets, wherever they are. `storage` is where sockets keep what they were translated to; without it, only
/// sockets that are named can be found. For use where blocking is allowed.
///
/// # Errors
/// When no thread can be made. A namespace that fails is counted, and the others are still walked through.
pub fn end(targets: &HashSet<Target>, storage: Option<&Storage>) -> io::Result<Outcome> {
    let mut ended = HashSet::new();
    if targets.is_empty() {
        return Ok(Outcome::default());
    }
    let transports: HashSet<Transport> = targets.iter().map(Target::transport).collect();
    let maps = storage.map(Storage::maps);
    let maps = maps.as_ref().map_or(&[][..], |maps| maps);
    let is_target = |socket: &Connected| {
        let translation = storage.and_then(|storage| storage.translation(socket));
        let backend = translation.map(|got| Target::Backend(socket.transport, got.backend_id));
        targets.contains(&Target::Socket(socket.into())) || backend.is_some_and(|it| targets.contains(&it))
    };
    let walked = walk(|sock_diag| {
        for transport in transports.iter().copied() {
            end_all(sock_diag, sock_diag.connected(transport, maps, is_target)?, &mut ended)?;
        }
        Ok(())
    })?;
    Ok(Outcome { ended, walked })
}

/// Sockets with the same addresses at both ends (SO_REUSEPORT) hide each other: again while that brings on.
fn end_all(
    sock_diag: &SockDiag,
    mut left: Vec<Connected>,
    ended: &mut HashSet<Suspect>,
) -> Result<(), SockDiagError> {
    loop {
        let before = left.len();
        let mut hidden = Vec::new();
        for socket in left {
            if sock_diag.end(&socket)? {
                ended.insert((&socket).into());
            } else {
                hidden.push(socket);
            }
        }
        if hidden.is_empty() || hidden.len() == before {
            return Ok(());
        }
        left = hidden;
    }
}
