//! The cluster's state for the programs besides services: its service ranges, and addresses of network namespaces.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use proxy_common::{
    V4, V6,
    layout::{
        cidr::{Cidr, ServiceCidrs},
        maps::table,
    },
};
use tracing::warn;

use super::{
    maps::{self, Array, MapFamily},
    pins::Pins,
    table::Table,
};

/// The maps `service_cidrs` and `netns` of both families.
pub(super) struct ClusterMaps {
    cidrs_v4: Array<ServiceCidrs<V4>>,
    cidrs_v6: Array<ServiceCidrs<V6>>,
    /// The ranges that were written last: setting the same ranges again costs nothing.
    ranges: Option<BTreeSet<IpNet>>,
    netns_v4: Namespaces<V4>,
    netns_v6: Namespaces<V6>,
}

impl ClusterMaps {
    /// Opens the maps and reads their entries.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            cidrs_v4: V4::service_cidrs(pins)?,
            cidrs_v6: V6::service_cidrs(pins)?,
            ranges: None,
            netns_v4: Namespaces::new(Box::new(maps::hash::<table::Netns<V4>>(pins)?))?,
            netns_v6: Namespaces::new(Box::new(maps::hash::<table::Netns<V6>>(pins)?))?,
        })
    }

    pub(super) fn set_service_cidrs(&mut self, ranges: &[IpNet]) -> Result<()> {
        let ranges: BTreeSet<IpNet> = ranges.iter().map(IpNet::trunc).collect();
        if self.ranges.as_ref() == Some(&ranges) {
            return Ok(());
        }
        let context = "cannot write the ranges of service addresses";
        self.cidrs_v4.set(0, service_cidrs::<V4>(&ranges)).context(context)?;
        self.cidrs_v6.set(0, service_cidrs::<V6>(&ranges)).context(context)?;
        self.ranges = Some(ranges);
        Ok(())
    }

    pub(super) fn set_netns_addresses(&mut self, addresses: &HashMap<u64, Vec<IpAddr>>) -> Result<()> {
        let v4 = self.netns_v4.set(addresses);
        self.netns_v6.set(addresses).and(v4).context("cannot write the addresses of network namespaces")
    }
}

/// The ranges of a family as the programs compare them.
fn service_cidrs<F: MapFamily>(ranges: &BTreeSet<IpNet>) -> ServiceCidrs<F> {
    let mut cidrs = ServiceCidrs::default();
    let mut room = cidrs.0.iter_mut();
    for range in ranges {
        let (Some(base), Some(mask)) = (F::from_ip(range.network()), F::from_ip(range.netmask())) else {
            continue;
        };
        if range.prefix_len() == 0 {
            warn!("the service range {range} is left out: nothing would leave this node");
            continue;
        }
        match room.next() {
            Some(cidr) => *cidr = Cidr { base, mask },
            None => {
                warn!("the service range {range} is left out: the maximum is {}", ServiceCidrs::<F>::MAX)
            }
        }
    }
    cidrs
}

/// `netns` of a family, and its entries.
struct Namespaces<F: MapFamily> {
    table: Box<dyn Table<u64, F::Addr>>,
    known: HashMap<u64, F::Addr>,
}

impl<F: MapFamily> Namespaces<F> {
    fn new(table: Box<dyn Table<u64, F::Addr>>) -> Result<Self> {
        let known = table.entries()?.into_iter().collect();
        Ok(Self { table, known })
    }

    /// Writes what differs; tells the last error.
    fn set(&mut self, addresses: &HashMap<u64, Vec<IpAddr>>) -> io::Result<()> {
        let wanted: HashMap<u64, F::Addr> = addresses
            .iter()
            .filter_map(|(cookie, ips)| Some((*cookie, ips.iter().find_map(|ip| F::from_ip(*ip))?)))
            .collect();
        let mut result = Ok(());
        // Removals first: they make room.
        let gone: Vec<u64> =
            self.known.keys().filter(|cookie| !wanted.contains_key(cookie)).copied().collect();
        for cookie in gone {
            match self.table.remove(&cookie) {
                Ok(()) => drop(self.known.remove(&cookie)),
                Err(error) => result = Err(error),
            }
        }
        for (cookie, addr) in wanted {
            if self.known.get(&cookie) == Some(&addr) {
                continue;
            }
            match self.table.insert(cookie, addr) {
                Ok(()) => drop(self.known.insert(cookie, addr)),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::Family as _;

    use super::*;
    use crate::datapath::{address::UserFamily as _, table::memory::Memory};

    fn addr(ip: &str) -> u32 {
        V4::from_ip(ip.parse().unwrap()).unwrap()
    }

    #[test]
    fn service_ranges_of_a_family() {
        let ranges =
            ["10.96.0.7/12", "fd00:10::/108", "172.20.0.0/16", "0.0.0.0/0"].map(|net| net.parse().unwrap());
        let ranges = ranges.into();
        let v4 = service_cidrs::<V4>(&ranges);
        for (ip, is_within) in [
            ("10.96.0.1", true),
            ("10.111.9.9", true),
            ("172.20.1.1", true),
            ("10.112.0.0", false),
            ("8.8.8.8", false),
        ] {
            assert_eq!(v4.contains(&addr(ip)), is_within, "{ip}");
        }
        let v6 = service_cidrs::<V6>(&ranges);
        assert!(v6.contains(&V6::from_ip("fd00:10::1".parse().unwrap()).unwrap()));
        assert!(!v6.contains(&V6::UNSPECIFIED));
    }

    #[test]
    fn there_is_room_for_a_few_ranges() {
        let ranges: BTreeSet<IpNet> = (0..6).map(|i| format!("10.{i}.0.0/16").parse().unwrap()).collect();
        let cidrs = service_cidrs::<V4>(&ranges);
        assert!(cidrs.contains(&addr("10.3.0.1")));
        assert!(!cidrs.contains(&addr("10.4.0.1")));
    }

    #[test]
    fn namespaces_are_written_where_they_differ() {
        let table = Memory::new(2);
        let mut namespaces = Namespaces::<V4>::new(Box::new(table.clone())).unwrap();
        let of = |entries: &[(u64, &[&str])]| -> HashMap<u64, Vec<IpAddr>> {
            let ips = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
            entries.iter().map(|(cookie, list)| (*cookie, ips(list))).collect()
        };
        namespaces
            .set(&of(&[(1, &["fd00::1", "10.0.0.1", "10.0.0.9"]), (2, &["10.0.0.2"]), (3, &["fd00::3"])]))
            .unwrap();
        assert_eq!((table.get(&1), table.get(&3)), (Some(addr("10.0.0.1")), None));
        let writes = table.writes();
        namespaces.set(&of(&[(1, &["10.0.0.1"]), (2, &["10.0.0.2"])])).unwrap();
        assert_eq!(table.writes(), writes);
        // One goes, one moves, one comes into the room that is free.
        namespaces.set(&of(&[(2, &["10.0.0.8"]), (4, &["10.0.0.4"])])).unwrap();
        assert_eq!((table.get(&1), table.get(&2)), (None, Some(addr("10.0.0.8"))));
        assert_eq!(table.get(&4), Some(addr("10.0.0.4")));
        assert_eq!(table.writes(), writes + 3);
        assert!(namespaces.set(&of(&[(2, &["10.0.0.8"]), (4, &["10.0.0.4"]), (5, &["10.0.0.5"])])).is_err());
        let mut next = Namespaces::<V4>::new(Box::new(table.clone())).unwrap();
        next.set(&of(&[(2, &["10.0.0.8"]), (4, &["10.0.0.4"])])).unwrap();
        assert_eq!(table.writes(), writes + 3, "what an earlier agent wrote is known");
    }
}
