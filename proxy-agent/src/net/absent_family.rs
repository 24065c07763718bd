//! The family that this node has no address of.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use crate::model::plan::IpFamily;

/// The family of which this node has no address that another machine could use, if it has one of the other family.
pub(crate) fn absent_family() -> Option<IpFamily> {
    let interfaces = getifaddrs().ok()?;
    absent(interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))
    }))
}

fn absent(addresses: impl Iterator<Item = IpAddr>) -> Option<IpFamily> {
    let is_usable = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    };
    let mut has = [false; IpFamily::ALL.len()];
    addresses.filter(is_usable).for_each(|address| has[IpFamily::of(&address) as usize] = true);
    match has {
        [true, false] => Some(IpFamily::V6),
        [false, true] => Some(IpFamily::V4),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_link_local_addresses_do_not_count() {
        for (addresses, expected) in [
            (&["127.0.0.1", "::1", "192.168.0.1", "fe80::1"][..], Some(IpFamily::V6)),
            (&["127.0.0.1", "::1", "fd00::1"], Some(IpFamily::V4)),
            (&["192.168.0.1", "fd00::1"], None),
            // At boot, before the network is configured.
            (&["127.0.0.1", "::1", "fe80::1"], None),
            (&[], None),
        ] {
            let parsed = addresses.iter().map(|address| address.parse().unwrap());
            assert_eq!(absent(parsed), expected, "{addresses:?}");
        }
    }
}
