//! The kernel's entry of a neighbour, read by netlink.

use std::{io, net::IpAddr, time::Duration};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike as _},
};
use proxy_sys::packet::Mac;

/// A neighbour that the kernel has resolved itself: not a permanent entry, and not one of a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Where its frames go.
    pub(crate) mac: Mac,
    /// Time since the neighbour was last confirmed to be reachable.
    pub(crate) confirmed: Duration,
}

/// Reads neighbours of this network namespace.
pub(crate) struct Neighbours {
    socket: Socket,
}

impl Neighbours {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel answers at once; one that does not must not stop everything.
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Self { socket })
    }

    /// `None` for one that is not known or not resolved, and for those that are others' business: permanent ones, ones without ARP, and
    /// those that a control plane entered (`extern_learn`) or validates (`extern_valid`).
    pub(crate) fn get(&self, ifindex: u32, ip: IpAddr) -> io::Result<Option<Resolved>> {
        let mut message = NeighbourMessage::default();
        message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = ifindex;
        message.attributes.push(NeighbourAttribute::Destination(match ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        }));
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        let payload = NetlinkPayload::InnerMessage(RouteNetlinkMessage::GetNeighbour(message));
        let mut packet = NetlinkMessage::new(header, payload);
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                Ok(resolved(&message))
            }
            NetlinkPayload::Error(error) => match error.to_io() {
                error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                error => Err(error),
            },
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn resolved(message: &NeighbourMessage) -> Option<Resolved> {
    /// The kernel reports times in hundredths of a second (USER_HZ).
    const TICK: Duration = Duration::from_millis(10);
    let is_own = matches!(
        message.header.state,
        NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay | NeighbourState::Probe
    ) && !message.header.flags.contains(NeighbourFlags::ExtLearned);
    let is_validated_by_others = message.attributes.iter().any(|attribute| {
        matches!(attribute, NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::ExtValidated))
    });
    if !is_own || is_validated_by_others {
        return None;
    }
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => Mac::try_from(bytes.as_slice()).ok(),
        _ => None,
    });
    let confirmed = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::CacheInfo(info) => Some(TICK * info.confirmed),
        _ => None,
    });
    Some(Resolved { mac: mac?, confirmed: confirmed? })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::neighbour::NeighbourCacheInfo;

    use super::*;

    fn outcome(state: NeighbourState, flags: NeighbourFlags) -> Option<Resolved> {
        let mut info = NeighbourCacheInfo::parse(&[0; 16]).unwrap();
        info.confirmed = 150;
        let mut message = NeighbourMessage::default();
        message.header.state = state;
        message.header.flags = flags;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
            NeighbourAttribute::CacheInfo(info),
        ];
        resolved(&message)
    }

    #[test]
    fn neighbours_of_others_are_left_alone() {
        let own = Some(Resolved { mac: [2, 0, 0, 0, 0, 9], confirmed: Duration::from_millis(1_500) });
        let none = NeighbourFlags::empty();
        for (state, flags, expected) in [
            (NeighbourState::Reachable, none, own),
            (NeighbourState::Stale, NeighbourFlags::Router, own),
            (NeighbourState::Permanent, none, None),
            (NeighbourState::Noarp, none, None),
            (NeighbourState::Failed, none, None),
            (NeighbourState::Incomplete, none, None),
            (NeighbourState::Reachable, NeighbourFlags::ExtLearned, None),
        ] {
            assert_eq!(outcome(state, flags), expected, "{state:?} {flags:?}");
        }
    }
}
