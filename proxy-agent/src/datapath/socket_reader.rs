//! Reads the records of connected sockets: runs the programs `socket_backend4` and `socket_backend6`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::{
        id::Id,
        socket::{ConnectedPeer, SocketQuestion},
    },
};
use proxy_sys::bpf::program;

use super::{
    address::{UserFamily, protocol_number},
    hash::read,
    object::Object,
};
use crate::{model::objects::Protocol, net::sock_diag::Connected};

/// The frontend that a socket connected to, and the backend that it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kept {
    /// The VIP.
    pub vip: SocketAddr,
    /// The service port that it led to.
    pub service: Id,
    /// The backend.
    pub backend: Id,
}

/// The programs of IPv4 and IPv6.
pub(super) const PROGRAMS: [&str; 2] = ["socket_backend4", "socket_backend6"];

/// Reads the records of connected sockets. Only on kernels with socket storage.
#[derive(Debug)]
pub struct SocketReader {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl SocketReader {
    pub(super) fn load(object: &mut Object) -> Result<Self> {
        object.load_programs(PROGRAMS.into_iter())?;
        Ok(Self { v4: object.program(PROGRAMS[0])?, v6: object.program(PROGRAMS[1])? })
    }

    /// The record of this socket of this thread's network namespace; `None` if it was not translated, or has connected
    /// elsewhere since. An IPv6 socket that talks to IPv4 has IPv4 addresses here.
    ///
    /// If several sockets have the same addresses and its record is in none of the cells, it is the record of the one that
    /// a datagram of the peer would go to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kept(&self, socket: &Connected) -> io::Result<Option<Kept>> {
        let Connected { transport, cookie, local, peer, .. } = *socket;
        let Some(mut packet) = question(transport.into(), cookie, local, peer) else { return Ok(None) };
        let program = if peer.is_ipv4() { &self.v4 } else { &self.v6 };
        if Id(program::run_once(program.as_fd(), &mut packet)?) == Id::NONE {
            return Ok(None);
        }
        Ok(if peer.is_ipv4() { answer::<V4>(&packet) } else { answer::<V6>(&packet) })
    }
}

/// Reads the answer, which stands where the question was.
fn answer<F: UserFamily>(packet: &[u8]) -> Option<Kept> {
    let from = SocketQuestion::<F>::OFFSET;
    let kept: ConnectedPeer<F> = read(packet.get(from..)?)?;
    Some(Kept {
        vip: F::to_socket(&kept.vip, kept.vip_port),
        service: kept.service,
        backend: kept.backend_id,
    })
}

/// A [`SocketQuestion`] as a packet; `None` for addresses of different families, which no connected socket has.
fn question(protocol: Protocol, cookie: u64, local: SocketAddr, peer: SocketAddr) -> Option<Vec<u8>> {
    // The kernel takes no packet without an Ethernet header, and it looks at a network header behind it.
    const SIZE: usize = 128;
    let (offset, peer_ip, local_ip) = match (peer.ip(), local.ip()) {
        (IpAddr::V4(peer), IpAddr::V4(local)) => {
            (SocketQuestion::<V4>::OFFSET, peer.octets().to_vec(), local.octets().to_vec())
        }
        (IpAddr::V6(peer), IpAddr::V6(local)) => {
            (SocketQuestion::<V6>::OFFSET, peer.octets().to_vec(), local.octets().to_vec())
        }
        _ => return None,
    };
    let mut packet = vec![0; offset];
    packet.extend(peer_ip);
    packet.extend(local_ip);
    packet.extend(peer.port().to_be_bytes());
    packet.extend(local.port().to_be_bytes());
    packet.extend(u32::from(protocol_number(protocol)).to_ne_bytes());
    packet.extend(cookie.to_ne_bytes());
    packet.resize(SIZE, 0);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_laid_out_as_the_programs_read_it() {
        let asked = |protocol, local: &str, peer: &str| {
            question(protocol, 0x0102, local.parse().unwrap(), peer.parse().unwrap())
        };
        let packet = asked(Protocol::Udp, "10.244.1.2:40000", "10.244.0.3:53").unwrap();
        let v4 = [10, 244, 0, 3, 10, 244, 1, 2, 0, 53, 0x9c, 0x40];
        assert_eq!(packet[14..26], v4);
        assert_eq!(packet[26..30], 17u32.to_ne_bytes());
        assert_eq!(packet[30..38], 0x0102u64.to_ne_bytes());
        let packet = asked(Protocol::Tcp, "[fd00::2]:1", "[fd00::3]:2").unwrap();
        assert_eq!((packet[14 + 15], packet[14 + 31]), (3, 2));
        assert_eq!(packet[46..50], [0, 2, 0, 1]);
        assert_eq!(packet[50..54], 6u32.to_ne_bytes());
        assert_eq!(packet[54..62], 0x0102u64.to_ne_bytes());
        assert_eq!(asked(Protocol::Udp, "0.0.0.0:1", "[fd00::3]:2"), None);
    }
}
