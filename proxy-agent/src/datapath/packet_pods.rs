//! Network namespaces whose sockets are left alone, because packets serve them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use proxy_common::layout::maps::table;

use super::{maps, pins::Pins, table::Table};

/// The map `packet_pods`, and its entries.
pub(super) struct PacketPods {
    table: Box<dyn Table<u64, u32>>,
    known: BTreeSet<u64>,
}

impl PacketPods {
    /// Opens the map and reads an earlier agent's entries.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Self::new(Box::new(maps::hash::<table::PacketPods>(pins)?))
    }

    fn new(table: Box<dyn Table<u64, u32>>) -> Result<Self> {
        let known = table.entries()?.into_iter().map(|(cookie, _)| cookie).collect();
        Ok(Self { table, known })
    }

    /// Cookies of the namespaces.
    pub(super) fn known(&self) -> &BTreeSet<u64> {
        &self.known
    }

    /// Writes the differences; returns the last error.
    pub(super) fn set(&mut self, cookies: &BTreeSet<u64>) -> Result<()> {
        let mut result = Ok(());
        let gone: Vec<u64> = self.known.difference(cookies).copied().collect();
        for cookie in gone {
            match self.table.remove(&cookie) {
                Ok(()) => drop(self.known.remove(&cookie)),
                Err(error) => result = Err(error),
            }
        }
        let new: Vec<u64> = cookies.difference(&self.known).copied().collect();
        for cookie in new {
            match self.table.insert(cookie, 1) {
                Ok(()) => drop(self.known.insert(cookie)),
                Err(error) => result = Err(error),
            }
        }
        result.context("cannot write the map `packet_pods`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::table::memory::Memory;

    #[test]
    fn what_differs_is_written() {
        let table = Memory::new(2);
        let mut pods = PacketPods::new(Box::new(table.clone())).unwrap();
        pods.set(&[1, 2].into()).unwrap();
        assert_eq!(table.writes(), 2);
        pods.set(&[2, 3].into()).unwrap();
        assert_eq!((table.get(&1), table.get(&3), table.writes()), (None, Some(1), 4));
        assert!(pods.set(&[2, 3, 4].into()).is_err(), "no room");
        assert_eq!(*pods.known(), [2, 3].into());
        let mut next = PacketPods::new(Box::new(table.clone())).unwrap();
        let writes = table.writes();
        next.set(&[2, 3].into()).unwrap();
        assert_eq!(table.writes(), writes, "what an earlier agent wrote is known");
    }
}
