//! Finds sockets in all network namespaces and ends them.

use std::{collections::HashSet, io, net::SocketAddr, ops::ControlFlow};

use tracing::debug;

use crate::net::{
    netns,
    sock_diag::{Connected, SockDiag, SockDiagError, Transport},
};

/// A socket to be ended, if it is still connected to that peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// How ending sockets went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Sockets that were ended.
    pub ended: HashSet<Suspect>,
    /// Network namespaces walked through; none where there was nothing to look for.
    pub namespaces: usize,
    /// How often a network namespace could not be entered, or its sockets not be listed or ended.
    pub failed: usize,
    /// This kernel cannot do it at all.
    pub unsupported: bool,
}

/// Ends the sockets, wherever they are. For use where blocking is allowed.
///
/// # Errors
/// When no thread can be made. A namespace that fails is counted, and the others are still walked through.
pub fn end(suspects: &HashSet<Suspect>) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    if suspects.is_empty() {
        return Ok(outcome);
    }
    let searches = searches(suspects);
    let walk = netns::walk(|| {
        match end_here(suspects, &searches, &mut outcome.ended) {
            Ok(()) => {}
            Err(SockDiagError::Unsupported) => outcome.unsupported = true,
            Err(error) => {
                debug!("sockets of a network namespace cannot be ended: {error}");
                outcome.failed += 1;
            }
        }
        if outcome.unsupported || outcome.ended.len() == suspects.len() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    outcome.namespaces = walk.entered;
    outcome.failed += walk.failed;
    Ok(outcome)
}

/// What to ask the kernel for: which kinds of sockets, and the port at their other end, if they have one in common.
fn searches(suspects: &HashSet<Suspect>) -> Vec<(Transport, Option<u16>)> {
    let search = |transport| {
        let mut ports = suspects.iter().filter(|suspect| suspect.transport == transport);
        let port = ports.next()?.peer.port();
        Some((transport, ports.all(|suspect| suspect.peer.port() == port).then_some(port)))
    };
    [Transport::Udp, Transport::Tcp].into_iter().filter_map(search).collect()
}

/// Ends those of this thread's network namespace.
fn end_here(
    suspects: &HashSet<Suspect>,
    searches: &[(Transport, Option<u16>)],
    ended: &mut HashSet<Suspect>,
) -> Result<(), SockDiagError> {
    let sock_diag = SockDiag::open()?;
    for (transport, port) in searches.iter().copied() {
        let mut left = sock_diag.connected(transport, port, |socket| suspects.contains(&socket.into()))?;
        // Sockets with the same addresses at both ends (SO_REUSEPORT) hide each other: again while that brings on.
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
                break;
            }
            left = hidden;
        }
    }
    Ok(())
}
