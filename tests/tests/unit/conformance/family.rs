//! Addresses of the core and of the standard library.

use std::net::{IpAddr, Ipv6Addr};

use proxy_common::{V4, V6, decide::memory::MemoryFamily, packet};

/// A family that the runs can be made in.
pub(crate) trait CoreFamily: MemoryFamily {
    /// The protocol number of its echo requests.
    const ICMP: u8;

    /// The core's address, if it is of this family.
    fn address(ip: IpAddr) -> Option<Self::Addr>;

    /// The other way round.
    fn ip(address: Self::Addr) -> IpAddr;
}

impl CoreFamily for V4 {
    const ICMP: u8 = packet::PROTOCOL_ICMP;

    fn address(ip: IpAddr) -> Option<u32> {
        match ip {
            IpAddr::V4(v4) => Some(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(address: u32) -> IpAddr {
        address.to_ne_bytes().into()
    }
}

impl CoreFamily for V6 {
    const ICMP: u8 = packet::PROTOCOL_ICMPV6;

    fn address(ip: IpAddr) -> Option<[u32; 4]> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => {
                let words = v6.octets();
                Some(std::array::from_fn(|n| u32::from_ne_bytes(std::array::from_fn(|i| words[4 * n + i]))))
            }
        }
    }

    fn ip(address: [u32; 4]) -> IpAddr {
        let mut octets = [0; 16];
        for (to, word) in octets.chunks_exact_mut(4).zip(address) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}
