//! Addresses as people write them and as maps hold them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::{Family, V4, V6};

use crate::model::{objects::Protocol, plan::IpFamily};

/// A family, seen from the agent.
pub trait UserFamily: Family {
    /// Which one.
    const FAMILY: IpFamily;

    /// An address of this family as maps hold it.
    fn from_ip(ip: IpAddr) -> Option<Self::Addr>;

    /// Back again.
    fn to_ip(addr: &Self::Addr) -> IpAddr;

    /// Address and port (network byte order).
    fn to_socket(addr: &Self::Addr, port: u16) -> SocketAddr {
        SocketAddr::new(Self::to_ip(addr), u16::from_be(port))
    }
}

impl UserFamily for V4 {
    const FAMILY: IpFamily = IpFamily::V4;

    fn from_ip(ip: IpAddr) -> Option<u32> {
        match ip {
            IpAddr::V4(ip) => Some(u32::from_ne_bytes(ip.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(addr: &u32) -> IpAddr {
        Ipv4Addr::from(addr.to_ne_bytes()).into()
    }
}

impl UserFamily for V6 {
    const FAMILY: IpFamily = IpFamily::V6;

    fn from_ip(ip: IpAddr) -> Option<[u32; 4]> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => {
                let octets = ip.octets();
                let word =
                    |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
                Some([word(0), word(4), word(8), word(12)])
            }
        }
    }

    fn to_ip(addr: &[u32; 4]) -> IpAddr {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(addr) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

/// IP protocol number.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// The protocol of a number; `None` for those that no Service has.
pub fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let v4: IpAddr = "10.96.0.1".parse().unwrap();
        let v6: IpAddr = "fd00::1:2".parse().unwrap();
        assert_eq!(V4::from_ip(v4).map(|addr| V4::to_ip(&addr)), Some(v4));
        assert_eq!(V6::from_ip(v6).map(|addr| V6::to_ip(&addr)), Some(v6));
        assert_eq!((V4::from_ip(v6), V6::from_ip(v4)), (None, None));
    }
}
