//! Sends a request for a neighbour's link-layer address, as the kernel does: ARP (RFC 826), or a neighbor solicitation (RFC 4861). The
//! kernel processes the reply, as it does with every reply from a neighbour that it knows.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::neighbour::Mac;

const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const ARPHRD_ETHER: u16 = 1;
const BROADCAST: Mac = [0xff; 6];

/// Sends a request to a neighbour behind an Ethernet interface: to the MAC `known`, or else to all hosts.
///
/// # Errors
/// The kernel's; `Unsupported` if the interface is not Ethernet.
pub(crate) fn send(ifindex: u32, target: IpAddr, known: Option<Mac>) -> io::Result<()> {
    let socket = packet_socket()?;
    let own = own_mac(&socket, ifindex)?;
    let (protocol, to, payload) = match (target, source(ifindex, target)?) {
        (IpAddr::V4(target), IpAddr::V4(source)) => {
            (ETH_P_ARP, known.unwrap_or(BROADCAST), arp_request(own, source, target).to_vec())
        }
        (IpAddr::V6(target), IpAddr::V6(source)) => {
            let group = solicited_node(target);
            let (to, destination) = known.map_or((multicast(group), group), |known| (known, target));
            (ETH_P_IPV6, to, solicitation(own, source, target, destination))
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let address = link_address(ifindex, protocol, to);
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an open socket; the payload and the address have the lengths that are given, and outlive the call.
    let sent = unsafe {
        let (start, address) = (payload.as_ptr().cast(), (&raw const address).cast());
        libc::sendto(socket.as_raw_fd(), start, payload.len(), 0, address, length)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that sends, and receives nothing. The kernel makes the Ethernet header.
fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain arguments.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: a new descriptor, owned by nothing else.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

fn link_address(ifindex: u32, protocol: u16, to: Mac) -> libc::sockaddr_ll {
    let mut address = [0; 8];
    address[..to.len()].copy_from_slice(&to);
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: to.len() as u8,
        sll_addr: address,
    }
}

/// The interface's own address, which the kernel reports of a bound socket.
fn own_mac(socket: &OwnedFd, ifindex: u32) -> io::Result<Mac> {
    let mut address = link_address(ifindex, 0, [0; 6]);
    let mut length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an open socket, and an address of the length that is given, which outlives both calls.
    let result = unsafe {
        let fd = socket.as_raw_fd();
        match libc::bind(fd, (&raw const address).cast(), length) {
            0 => libc::getsockname(fd, (&raw mut address).cast(), &raw mut length),
            failed => failed,
        }
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if address.sll_hatype != ARPHRD_ETHER {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let [a, b, c, d, e, f, ..] = address.sll_addr;
    Ok([a, b, c, d, e, f])
}

/// The address that the node itself would send from.
fn source(ifindex: u32, target: IpAddr) -> io::Result<IpAddr> {
    /// From 5.1; `libc` does not have it.
    const SO_BINDTOIFINDEX: libc::c_int = 62;
    /// Discard (RFC 863): nothing is sent.
    const PORT: u16 = 9;
    let (any, target) = match target {
        IpAddr::V4(ip) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), SocketAddr::new(ip.into(), PORT)),
        IpAddr::V6(ip) => (Ipv6Addr::UNSPECIFIED.into(), SocketAddrV6::new(ip, PORT, 0, ifindex).into()),
    };
    let socket = UdpSocket::bind((any, 0))?;
    let index = ifindex as libc::c_int;
    let length = size_of_val(&index) as libc::socklen_t;
    // SAFETY: an open socket, and a value of the length that is given, which outlives the call.
    let result = unsafe {
        let value = (&raw const index).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_BINDTOIFINDEX, value, length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
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
