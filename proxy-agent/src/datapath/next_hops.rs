//! The maps `next_hops` of both families: which neighbours the programs send to.

use std::net::IpAddr;

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::{
        device::DEVICE_UPLINK,
        maps::table,
        next_hop::{HEARTBEAT, NextHop, SLOTS},
    },
};

use super::{
    array::MmapArray,
    maps::{self, MapFamily},
    pins::Pins,
};
use crate::clock::Clock;

/// A neighbour: the index of its interface, and its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) ifindex: u32,
    pub(crate) ip: IpAddr,
}

/// The maps, read without system calls.
pub(crate) struct NextHops {
    pins: Pins,
    v4: MmapArray<NextHop<V4>>,
    v6: MmapArray<NextHop<V6>>,
}

impl NextHops {
    /// Opens the pinned maps.
    ///
    /// # Errors
    /// When there are none, or they are of another version.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            pins: pins.clone(),
            v4: maps::mmap::<table::NextHops<V4>>(pins)?,
            v6: maps::mmap::<table::NextHops<V6>>(pins)?,
        })
    }

    /// The neighbours behind uplinks that were used in the last so many seconds.
    ///
    /// # Errors
    /// When the map `interfaces` cannot be read.
    pub(crate) fn used(&self, clock: Clock, seconds: u32) -> Result<Vec<Neighbour>> {
        let mut used = used_of(&self.v4, clock, seconds);
        used.extend(used_of(&self.v6, clock, seconds));
        if used.is_empty() {
            return Ok(used);
        }
        let devices = maps::interfaces(&self.pins)?;
        used.retain(|neighbour| {
            let device = devices.get(&neighbour.ifindex).ok().flatten();
            device.is_some_and(|device| device.flags & DEVICE_UPLINK != 0)
        });
        Ok(used)
    }

    /// Informs the programs that neighbours are being probed.
    pub(crate) fn beat(&self, clock: Clock) {
        // Not the current time: this clock may be a little ahead of the kernel's. And not 0, which means that no agent ever probed.
        let last_used = clock.ago(1).max(1);
        self.v4.write(HEARTBEAT, NextHop { last_used, ..NextHop::default() });
        self.v6.write(HEARTBEAT, NextHop { last_used, ..NextHop::default() });
    }
}

fn used_of<F: MapFamily>(map: &MmapArray<NextHop<F>>, clock: Clock, seconds: u32) -> Vec<Neighbour> {
    (0..SLOTS)
        .filter_map(|slot| map.read(slot))
        .filter(|hop| hop.ifindex != 0 && clock.seconds_since(hop.last_used) < u64::from(seconds))
        .map(|hop| Neighbour { ifindex: hop.ifindex, ip: F::to_ip(&hop.addr) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::address::UserFamily as _;

    #[test]
    fn neighbours_that_were_used_lately() {
        let map = MmapArray::<NextHop<V4>>::anonymous(SLOTS + 1);
        let clock = Clock::fixed(10_000, 1_000);
        let hop = |ip: &str, last_used| NextHop {
            addr: V4::from_ip(ip.parse().unwrap()).unwrap(),
            ifindex: 2,
            last_used,
            handed_over: 0,
        };
        map.write(0, hop("10.0.0.1", 9_990));
        map.write(7, hop("10.0.0.2", 7_000));
        map.write(SLOTS - 1, hop("10.0.0.3", 8_500));
        map.write(HEARTBEAT, hop("10.0.0.4", 10_000));
        let found: Vec<String> = used_of(&map, clock, 2).iter().map(|hop| hop.ip.to_string()).collect();
        assert_eq!(found, ["10.0.0.1", "10.0.0.3"]);
    }
}
