//! The flow maps, as the agent walks through them to remove expired entries.

use std::io;

use anyhow::{Context as _, Result};
use proxy_common::{
    layout::{
        flow::{Flow, FlowKey, FlowState},
        maps::table,
    },
    packet::PROTOCOL_UDP,
};

use super::{
    by_use::ByUseMap,
    hash::Hash,
    maps::{MapFamily, current},
    pins::Pins,
};

/// States of flows, for people and metrics.
pub(crate) const STATES: [&str; 8] =
    ["new", "syn-received", "replied", "established", "half-closed", "time-wait", "closed", "reset"];

/// The name of a [`FlowState`], one of [`STATES`].
pub(crate) fn state_name(protocol: u8, state: u8) -> &'static str {
    const SYN_RECEIVED: u8 = FlowState::SynReceived as u8;
    const ESTABLISHED: u8 = FlowState::Established as u8;
    const BY_CLIENT: u8 = FlowState::ClosingByClient as u8;
    const BY_SERVER: u8 = FlowState::ClosingByServer as u8;
    const TIME_WAIT: u8 = FlowState::TimeWait as u8;
    const CLOSED: u8 = FlowState::Closed as u8;
    const RESET: u8 = FlowState::Reset as u8;
    let [new, syn_received, replied, established, half_closed, time_wait, closed, reset] = STATES;
    match state {
        // `FlowState::REPLIED`.
        SYN_RECEIVED if protocol == PROTOCOL_UDP => replied,
        SYN_RECEIVED => syn_received,
        ESTABLISHED => established,
        BY_CLIENT | BY_SERVER => half_closed,
        TIME_WAIT => time_wait,
        CLOSED => closed,
        RESET => reset,
        _ => new,
    }
}

/// A flow map. The data path keeps using it meanwhile.
pub(crate) trait FlowTable<F: MapFamily>: Send {
    /// Continues with the larger map that has replaced this one; false if none has.
    fn follow(&mut self) -> Result<bool>;
    /// Whether all entries are in this map: it replaces none, and none replaces it.
    fn is_whole(&self) -> Result<bool>;
    /// How many entries it has room for.
    fn capacity(&self) -> u32;
    /// The entries from a position on (the beginning is `None`), about as many as `room`; then the position behind them,
    /// `None` at the end.
    fn slice(&mut self, from: Option<u32>, room: usize) -> Result<Slice<F>>;
    /// The current entry. This read does not mark it as used.
    fn get(&self, key: &FlowKey<F>) -> Result<Option<Flow<F>>>;
    /// Removes an entry. One that is not there is gone already.
    fn remove(&mut self, key: &FlowKey<F>) -> Result<()>;
}

/// Some entries, and where to go on.
pub(crate) type Slice<F> = (Vec<(FlowKey<F>, Flow<F>)>, Option<u32>);

/// The kernel's, with room for a slice.
pub(crate) struct FlowMap<F: MapFamily> {
    /// The array that it is an element of; `None` if it is not.
    slots: Option<ByUseMap>,
    map: Hash<FlowKey<F>, Flow<F>>,
    keys: Vec<FlowKey<F>>,
    values: Vec<Flow<F>>,
}

impl<F: MapFamily> FlowMap<F> {
    /// Opens a family's pinned maps: that of unconfirmed flows first.
    ///
    /// # Errors
    /// When there is none, or it is of another version.
    pub(crate) fn open(pins: &Pins) -> Result<[Self; 2]> {
        let of = |(slots, map)| Self { slots: Some(slots), ..Self::of(map) };
        // In the order in which a flow is moved from one to the next.
        Ok([of(current::<table::Pending<F>>(pins)?), of(current::<table::Flows<F>>(pins)?)])
    }

    fn of(map: Hash<FlowKey<F>, Flow<F>>) -> Self {
        Self { slots: None, map, keys: Vec::new(), values: Vec::new() }
    }

    fn batch(&mut self, from: Option<u32>) -> io::Result<(usize, Option<u32>)> {
        loop {
            match self.map.batch(from, &mut self.keys, &mut self.values) {
                // A bucket with so many entries is hardly possible.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.make_room(2 * self.keys.len())
                }
                result => return result,
            }
        }
    }

    fn make_room(&mut self, room: usize) {
        if self.keys.len() < room {
            self.keys.resize(room, FlowKey::default());
            self.values.resize(room, Flow::default());
        }
    }
}

impl<F: MapFamily> FlowTable<F> for FlowMap<F> {
    fn follow(&mut self) -> Result<bool> {
        let Some(slots) = &self.slots else { return Ok(false) };
        let has_moved = slots.current_id()? != Some(self.map.id());
        if has_moved {
            self.map = Hash::replacing(slots.current()?, None)?;
        }
        Ok(has_moved)
    }

    fn is_whole(&self) -> Result<bool> {
        Ok(self.slots.as_ref().map_or(Ok(true), |slots| slots.is_settled(self.map.id()))?)
    }

    fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    fn slice(&mut self, from: Option<u32>, room: usize) -> Result<Slice<F>> {
        self.make_room(room);
        let (count, next) = self.batch(from).context("cannot read the flow map")?;
        let entries = self.keys.iter().copied().zip(self.values.iter().copied()).take(count).collect();
        Ok((entries, next))
    }

    fn get(&self, key: &FlowKey<F>) -> Result<Option<Flow<F>>> {
        self.map.get(key).context("cannot read the flow map")
    }

    fn remove(&mut self, key: &FlowKey<F>) -> Result<()> {
        self.map.remove(key).map(drop).context("cannot remove from the flow map")
    }
}

#[cfg(test)]
impl<F: MapFamily> FlowMap<F> {
    /// A separate map with these entries; `None` without the permission to make one.
    pub(crate) fn filled(
        max_entries: u32,
        entries: impl Iterator<Item = (FlowKey<F>, Flow<F>)>,
    ) -> Option<Self> {
        let map = match Hash::new_lru(max_entries) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return None,
            map => map.unwrap(),
        };
        entries.for_each(|(key, flow)| map.insert(&key, &flow).unwrap());
        Some(Self::of(map))
    }
}
