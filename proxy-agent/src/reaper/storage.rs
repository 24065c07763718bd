//! What connected sockets keep themselves: which backend the socket programs translated them to.

use std::{net::SocketAddr, os::fd::AsFd as _, os::fd::BorrowedFd};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use proxy_common::{
    V4, V6,
    layout::{id::Id, socket::ConnectedPeer},
    packet::Bytes as _,
};

use crate::{
    datapath::{address::UserFamily, maps::MapFamily, pins::Pins},
    net::sock_diag::{Connected, Stored},
};

/// What a socket was translated to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// What its process asked for.
    pub vip: SocketAddr,
    /// What it got.
    pub backend: SocketAddr,
    /// The backend's id at that time.
    pub backend_id: Id,
    /// The service port's id at that time.
    pub service: Id,
}

/// The maps `peers_v4` and `peers_v6`.
#[derive(Debug)]
pub struct Storage {
    v4: MapData,
    v6: MapData,
    /// The kernel's ids of them.
    ids: [u32; 2],
}

impl Storage {
    /// Opens the maps.
    ///
    /// # Errors
    /// When they are not pinned, or of another version.
    pub fn open(pins: &Pins) -> Result<Self> {
        let (v4, v6) = (V4::peers(pins)?, V6::peers(pins)?);
        let id = |map: &MapData| map.info().map(|info| info.id()).context("a map does not tell its id");
        let ids = [id(&v4)?, id(&v6)?];
        Ok(Self { v4, v6, ids })
    }

    /// For sock_diag, to tell what sockets have in them.
    pub fn maps(&self) -> [BorrowedFd<'_>; 2] {
        [self.v4.fd().as_fd(), self.v6.fd().as_fd()]
    }

    /// What a socket was translated to; `None` if it was not, or has connected elsewhere since.
    pub fn translation(&self, socket: &Connected) -> Option<Translation> {
        translation(&socket.stored, socket.peer, self.ids)
    }
}

/// A socket of IPv6 may have talked both to IPv6 and to IPv4: its peer tells what is of now.
fn translation(stored: &[Stored], peer: SocketAddr, [v4, v6]: [u32; 2]) -> Option<Translation> {
    let read = |stored: &Stored| match stored.map {
        map if map == v4 => decode::<V4>(&stored.value),
        map if map == v6 => decode::<V6>(&stored.value),
        _ => None,
    };
    stored.iter().filter_map(read).find(|translation| translation.backend == peer)
}

fn decode<F: UserFamily>(value: &[u8]) -> Option<Translation> {
    let peer: ConnectedPeer<F> = value.load(0)?;
    Some(Translation {
        vip: F::to_socket(&peer.vip, peer.vip_port),
        backend: F::to_socket(&peer.backend, peer.backend_port),
        backend_id: peer.backend_id,
        service: peer.service,
    })
}

#[cfg(test)]
mod tests;
