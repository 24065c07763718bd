//! How many cells of connected sockets are in use.

use anyhow::{Context as _, Result};
use proxy_common::layout::{
    maps::{DeclaredMap as _, table::PeerCells},
    socket::PeerCell,
};

use super::{hash::Hash, maps::MapFamily, pins::Pins};

/// Counts the cells that have an owner. Those of sockets that the kernel opened stay in use after these are closed.
///
/// # Errors
/// The kernel's.
pub fn in_use<F: MapFamily>(pins: &Pins) -> Result<usize> {
    /// Cells that one system call reads.
    const AT_ONCE: usize = 1024;
    let name = PeerCells::<F>::DEFINITION.name;
    let cells: Hash<u32, PeerCell<F>> =
        Hash::open_pinned(&pins.map(name)).with_context(|| format!("cannot open the map {name}"))?;
    let (mut indexes, mut values) = (vec![0; AT_ONCE], vec![PeerCell::default(); AT_ONCE]);
    let (mut in_use, mut from) = (0, None);
    loop {
        let (count, next) = cells.batch(from, &mut indexes, &mut values)?;
        in_use += values.iter().take(count).filter(|cell| cell.owner().is_some()).count();
        if next.is_none() {
            return Ok(in_use);
        }
        from = next;
    }
}
