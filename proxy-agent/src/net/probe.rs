//! Sends a request for a neighbour's link-layer address, as the kernel does: ARP (RFC 826), or a neighbor solicitation (RFC 4861). The
//! kernel processes the reply, as it does with every reply from a neighbour that it knows.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::AsFd as _,
};

use proxy_sys::{
    packet::{Mac, PacketSocket},
    socket::bind_to_interface,
};

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const BROADCAST: Mac = [0xff; 6];

/// Why no request was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// Neighbours behind other interfaces have no addresses to resolve.
    #[error("the interface is no Ethernet")]
    NoEthernet,
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] io::Error),
}

/// Sends a request to a neighbour behind an Ethernet interface: to the MAC `known`, or else to all hosts.
///
/// # Errors
/// The kernel's, and for other interfaces.
pub(crate) fn send(ifindex: u32, target: IpAddr, known: Option<Mac>) -> Result<(), ProbeError> {
    let socket = PacketSocket::open(ifindex)?;
    let own = socket.mac().ok_or(ProbeError::NoEthernet)?;
    let (protocol, to, payload) = match (target, source(ifindex, target)?) {
        (IpAddr::V4(target), IpAddr::V4(source)) => {
            (ETH_P_ARP, known.unwrap_or(BROADCAST), arp_request(own, source, target).to_vec())
        }
        (IpAddr::V6(target), IpAddr::V6(source)) => {
            let group = solicited_node(target);
            let (to, destination) = known.map_or((multicast(group), group), |known| (known, target));
            (ETH_P_IPV6, to, solicitation(own, source, target, destination))
        }
        _ => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
    };
    Ok(socket.send(protocol, to, &payload)?)
}

/// The address that the node itself would send from.
fn source(ifindex: u32, target: IpAddr) -> io::Result<IpAddr> {
    /// Discard (RFC 863): nothing is sent.
    const PORT: u16 = 9;
    let (any, target) = match target {
        IpAddr::V4(ip) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), SocketAddr::new(ip.into(), PORT)),
        IpAddr::V6(ip) => (Ipv6Addr::UNSPECIFIED.into(), SocketAddrV6::new(ip, PORT, 0, ifindex).into()),
    };
    let socket = UdpSocket::bind((any, 0))?;
    bind_to_interface(socket.as_fd(), ifindex)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

fn arp_request(own: Mac, source: Ipv4Addr, target: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, the lengths of their addresses, request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&own);
    packet[14..18].copy_from_slice(&source.octets());
    packet[24..28].copy_from_slice(&target.octets());
    packet
}

/// The multicast address of the request (RFC 4291 section 2.7.1).
fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = target.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

/// Its link-layer address (RFC 2464 section 7).
fn multicast(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn solicitation(own: Mac, source: Ipv6Addr, target: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    const HOP_LIMIT: u8 = 255;
    const NEIGHBOR_SOLICITATION: u8 = 135;
    const CHECKSUM: usize = 2;
    const SOURCE_LINK_LAYER_ADDRESS: [u8; 2] = [1, 1];
    let mut message = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend(SOURCE_LINK_LAYER_ADDRESS);
    message.extend(own);
    let length = message.len() as u16;
    // RFC 8200 section 8.1.
    let pseudo =
        [&source.octets()[..], &destination.octets(), &[0, 0], &length.to_be_bytes(), &[0, 0, 0, ICMPV6]];
    let checksum = !sum(pseudo.concat().iter().chain(&message));
    message[CHECKSUM..CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([ICMPV6, HOP_LIMIT]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(message);
    packet
}

/// The sum of an even number of bytes (RFC 1071).
fn sum<'a>(bytes: impl Iterator<Item = &'a u8>) -> u16 {
    let total: u32 =
        (0..).zip(bytes).map(|(at, byte)| u32::from(*byte) << if at % 2 == 0 { 8 } else { 0 }).sum();
    let folded = (total & 0xffff) + (total >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];

    #[test]
    fn requests_as_the_kernel_makes_them() {
        let request = arp_request(OWN, Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 9));
        let expected = [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9];
        assert_eq!(request, expected);
    }

    #[test]
    fn solicitations_have_right_checksums() {
        let (source, target): (Ipv6Addr, Ipv6Addr) =
            ("fe80::1".parse().unwrap(), "fd00::1:2:3456".parse().unwrap());
        let group = solicited_node(target);
        assert_eq!(group, "ff02::1:ff02:3456".parse::<Ipv6Addr>().unwrap());
        assert_eq!(multicast(group), [0x33, 0x33, 0xff, 2, 0x34, 0x56]);
        for destination in [target, group] {
            let packet = solicitation(OWN, source, target, destination);
            assert_eq!((packet.len(), packet[4..8].to_vec()), (72, vec![0, 32, 58, 255]));
            let pseudo = [&packet[8..40], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
            assert_eq!(sum(pseudo.iter().chain(&packet[40..])), 0xffff);
            assert_eq!(packet[48..64], target.octets());
            assert_eq!(packet[64..], [1, 1, 2, 0, 0, 0, 0, 1]);
        }
    }
}
