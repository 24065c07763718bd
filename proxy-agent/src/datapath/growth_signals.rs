//! Signals of the programs that maps had many insertions.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use anyhow::Result;
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use proxy_common::layout::{
    by_use::insertions_of,
    maps::{DeclaredMap as _, table},
};

use super::{by_use::ByUseMap, pins::Pins};

/// The pinned ring buffer.
pub(crate) struct GrowthSignals(RingBuf<MapData>);

impl GrowthSignals {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        let map = MapData::from_pin(pins.map(table::GrowthSignals::DEFINITION.name))?;
        Ok(Self(Map::RingBuf(map).try_into()?))
    }

    /// Waits for signals, at most for a time; false if the other end of a pipe was closed.
    ///
    /// # Errors
    /// The kernel's.
    #[expect(unsafe_code, reason = "aya lends the descriptor of a ring as a number")]
    pub(crate) fn wait(&self, stop: BorrowedFd<'_>, time: Option<Duration>) -> io::Result<bool> {
        // SAFETY: the ring keeps its descriptor open.
        let ring = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        wait(&mut [stop, ring].map(|fd| PollFd::new(fd, PollFlags::POLLIN)), time)
    }

    /// Forgets the signals that there are.
    pub(crate) fn clear(&mut self) {
        while self.0.next().is_some() {}
    }
}

/// Waits for a time; false if the other end of a pipe was closed.
///
/// # Errors
/// The kernel's.
pub(crate) fn pause(stop: BorrowedFd<'_>, time: Duration) -> io::Result<bool> {
    wait(&mut [PollFd::new(stop, PollFlags::POLLIN)], Some(time))
}

/// Waits for one of these; false if it is the first one.
fn wait(descriptors: &mut [PollFd<'_>], time: Option<Duration>) -> io::Result<bool> {
    let time = time.map_or(PollTimeout::NONE, |time| {
        PollTimeout::try_from(time.as_millis()).unwrap_or(PollTimeout::MAX)
    });
    while let Err(error) = poll(descriptors, time) {
        if error != Errno::EINTR {
            return Err(error.into());
        }
    }
    Ok(!descriptors.first().and_then(PollFd::any).unwrap_or(true))
}

/// How many insertions programs made into each map that grows by use.
pub(crate) struct Insertions(PerCpuArray<MapData, u64>);

impl Insertions {
    /// Opens the pinned counts.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        let map = MapData::from_pin(pins.map(table::Insertions::DEFINITION.name))?;
        Ok(Self(Map::PerCpuArray(map).try_into()?))
    }

    /// Insertions into a map since it was made, on all CPUs together.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn of(&self, map: &ByUseMap) -> Result<u64> {
        let Some(index) = insertions_of(map.definition()) else { return Ok(0) };
        Ok(self.0.get(&index, 0)?.iter().sum())
    }
}
