//! Finds sockets in all network namespaces and ends them.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use proxy_common::layout::id::Id;

use super::walk::{Walked, walk};
use crate::{
    datapath::{Kept, LostFrontend, SocketReader},
    net::sock_diag::{Connected, SockDiag, SockDiagError, Transport},
};

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

/// Sockets to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// This socket.
    Socket(Suspect),
    /// Every socket that keeps that it was translated to this backend, and is still connected to it.
    Backend(Transport, Id),
    /// Every UDP socket whose record names this frontend, and that is still connected to the backend in the record.
    Frontend(LostFrontend),
}

impl Target {
    fn transport(&self) -> Transport {
        match self {
            Self::Socket(suspect) => suspect.transport,
            Self::Backend(transport, _) => *transport,
            Self::Frontend(_) => Transport::Udp,
        }
    }
}

/// Whether a socket with this record must be ended.
pub(super) fn is_target(targets: &HashSet<Target>, transport: Transport, kept: &Kept) -> bool {
    let Kept { vip, service, backend } = *kept;
    let any: IpAddr = match vip {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let frontend = |address| targets.contains(&Target::Frontend(LostFrontend { service, address }));
    targets.contains(&Target::Backend(transport, backend))
        || transport == Transport::Udp && (frontend(vip) || frontend(SocketAddr::new(any, vip.port())))
}

/// How ending sockets went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Sockets that were ended.
    pub ended: HashSet<Suspect>,
    /// No namespace was walked through if there was no target.
    pub walked: Walked,
}

/// Ends the sockets, wherever they are. Without a reader only sockets that are named can be found. For use where blocking
/// is allowed.
///
/// # Errors
/// When no thread can be made. A namespace that fails is counted, and the others are still walked through.
pub fn end(targets: &HashSet<Target>, reader: Option<&SocketReader>) -> io::Result<Outcome> {
    let mut ended = HashSet::new();
    if targets.is_empty() {
        return Ok(Outcome::default());
    }
    let transports: HashSet<Transport> = targets.iter().map(Target::transport).collect();
    let walked = walk(|sock_diag| {
        transports
            .iter()
            .try_for_each(|transport| end_here(sock_diag, *transport, targets, reader, &mut ended))
    })?;
    Ok(Outcome { ended, walked })
}

/// Ends those of a network namespace. Of sockets with the same addresses at both ends (SO_REUSEPORT) the kernel finds one, to end
/// it and to read its storage. So those that it may have hidden are searched again when it is ended, and each time are checked again.
fn end_here(
    sock_diag: &SockDiag,
    transport: Transport,
    targets: &HashSet<Target>,
    reader: Option<&SocketReader>,
    ended: &mut HashSet<Suspect>,
) -> Result<(), SockDiagError> {
    let is_named = |socket: &Connected| targets.contains(&Target::Socket(socket.into()));
    let mut left = sock_diag.connected(transport, |socket| reader.is_some() || is_named(socket))?;
    let addresses = |socket: &Connected| (socket.local, socket.peer);
    while !left.is_empty() {
        let mut freed = HashSet::new();
        for socket in &left {
            if (is_named(socket) || keeps_target(socket, targets, reader)?) && sock_diag.end(socket)? {
                freed.insert(addresses(socket));
                ended.insert(socket.into());
            }
        }
        left.retain(|socket| freed.contains(&addresses(socket)) && !ended.contains(&Suspect::from(socket)));
    }
    Ok(())
}

/// Whether its record names one of these.
fn keeps_target(
    socket: &Connected,
    targets: &HashSet<Target>,
    reader: Option<&SocketReader>,
) -> io::Result<bool> {
    let Some(reader) = reader else { return Ok(false) };
    let kept = reader.kept(socket)?;
    Ok(kept.is_some_and(|kept| is_target(targets, socket.transport, &kept)))
}
