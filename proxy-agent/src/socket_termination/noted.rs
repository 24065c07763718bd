//! The socket programs' notes about connected sockets, on kernels without socket storage.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use proxy_common::{V4, V6, layout::socket::SocketDirection};

use crate::datapath::{Kept, maps::MapFamily, pins::Pins};

/// A socket that was translated to a backend. It may have been closed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Noted {
    /// The kernel's cookie of the socket.
    pub cookie: u64,
    /// The address that it got.
    pub backend: SocketAddr,
    /// The frontend that it connected to, and the ids that it got.
    pub kept: Kept,
}

/// Everything that is noted. For use where blocking is allowed: a system call for a few thousand sockets.
///
/// # Errors
/// When the maps `sockets_v4` and `sockets_v6` cannot be read.
pub fn read(pins: &Pins) -> Result<Vec<Noted>> {
    let mut noted = family::<V4>(pins)?;
    noted.extend(family::<V6>(pins)?);
    Ok(noted)
}

fn family<F: MapFamily>(pins: &Pins) -> Result<Vec<Noted>> {
    let entries = F::sockets(pins)?.entries().context("cannot read the sockets that were translated")?;
    let mut noted = Vec::new();
    for (_, entry) in entries {
        let (key, peer) = (entry.key, entry.peer);
        // Unconnected sockets have these too, but then no backend is their peer.
        if key.direction == SocketDirection::Receive as u16 {
            let vip = F::to_socket(&peer.addr, peer.port);
            noted.push(Noted {
                cookie: key.cookie,
                backend: F::to_socket(&key.addr, key.port),
                kept: Kept { vip, service: peer.service, backend: peer.backend },
            });
        }
    }
    Ok(noted)
}
