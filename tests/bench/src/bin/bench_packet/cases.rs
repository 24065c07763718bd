//! The cases: a program behind the wrapper, and its reference.

use std::os::fd::AsFd as _;

use anyhow::{Result, ensure};
use proxy_packets::sys::{self, Kind, at};

use crate::wrapper::{Packet, Wrapper, empty};

/// Tables of the document, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Baselines,
    /// Few services, few flows.
    One,
    /// [`CLIENTS`] clients with a flow each, in turn.
    Clients,
    /// 65,536 flows in turn.
    Many,
    /// With a full flow map.
    Full,
    /// With so many services.
    Services(u32),
    /// With the fewest services, in programs that were loaded once more: shows the resolution of the measurement.
    Again,
}

/// The subject of a case: targets are set by it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sort {
    /// A program of a few instructions.
    Baseline(BaselineSort),
    /// Ours, on a packet that is not for a service.
    NotOurs,
    /// Ours, on a packet of a known flow; with a changed source too, it is sent on past the stack.
    Established { snat: bool },
    /// Ours, on the first packet of a flow, which makes so many entries.
    New { entries: f64 },
}

impl Sort {
    /// Whether it takes so little time that a nanosecond decides if targets are met.
    fn is_short(self) -> bool {
        matches!(
            self,
            Self::NotOurs | Self::Baseline(BaselineSort::Parse | BaselineSort::Hit | BaselineSort::Miss)
        )
    }
}

/// Baselines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BaselineSort {
    Parse,
    Hit,
    Miss,
    Many,
    ManyScattered,
    ManyWhole,
    Insert,
    InsertLru,
    InsertFull,
    Fib,
    FibNone,
}

/// Work after each sample, so that the next one starts from the same state.
pub(crate) enum After<'w> {
    Nothing,
    /// Runs this as often.
    Undo(Wrapper),
    /// Calls this.
    Call(Box<dyn Fn() -> Result<()> + 'w>),
}

/// Which number stands for all runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Estimate {
    /// The difference of the smallest times: noise only adds.
    Smallest,
    /// The median of the differences: a case that needs more memory than the caches hold for sure is much faster while no
    /// other process uses them, which happens to one case and not to another.
    Median,
}

/// A case, ready to be run.
pub(crate) struct Case<'w> {
    pub(crate) table: Table,
    pub(crate) sort: Sort,
    pub(crate) kind: Kind,
    pub(crate) is_v4: bool,
    pub(crate) row: String,
    pub(crate) device: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) wrapper: Wrapper,
    /// The same with nothing behind it.
    pub(crate) baseline: Wrapper,
    /// Repetitions per sample.
    pub(crate) repeat: u32,
    /// Repetitions that are not timed, before each sample.
    pub(crate) warm_up: u32,
    /// Samples per run, one after the other.
    pub(crate) samples: u32,
    pub(crate) after: After<'w>,
    pub(crate) estimate: Estimate,
    /// How many of [`MANY`] packets that are not for a service are looked up as if they were, if they go by the filter.
    pub(crate) mistaken: Option<usize>,
    /// How many flows have been opened, where each repetition must open one.
    pub(crate) opened: Option<Box<dyn Fn() -> Result<u64> + 'w>>,
}

/// Repetitions where nothing is left behind.
const REPEAT: u32 = 20_000;

/// Samples per run where a nanosecond matters.
const SAMPLES_OF_SHORT: u32 = 4;

/// Repetitions where each adds something.
pub(crate) const REPEAT_NEW: u32 = 4096;

/// Clients with a flow each: a CPU caches fewer routes, while their flows are in its caches.
pub(crate) const CLIENTS: u32 = 1 << 11;

/// Number of varied values, for cases that go through many of them.
pub(crate) const MANY: u32 = 1 << 16;

impl<'w> Case<'w> {
    /// A case of a program that must return `result`.
    pub(crate) fn new(
        (table, sort, row): (Table, Sort, String),
        (kind, is_v4, device): (Kind, bool, u32),
        packet: &Packet,
        program: std::os::fd::BorrowedFd<'_>,
        result: u32,
    ) -> Result<Self> {
        let nothing = empty(kind)?;
        let case = Self {
            table,
            sort,
            kind,
            is_v4,
            row,
            device,
            frame: packet.frame.clone(),
            wrapper: Wrapper::new(kind, program, packet)?,
            baseline: Wrapper::new(kind, nothing.as_fd(), packet)?,
            repeat: REPEAT,
            warm_up: 0,
            samples: if sort.is_short() { SAMPLES_OF_SHORT } else { 1 },
            after: After::Nothing,
            estimate: Estimate::Smallest,
            mistaken: None,
            opened: None,
        };
        // Twice: the second repetition must find the packet restored.
        for repeat in [1, 2] {
            let run = |program| sys::run(program, kind, &case.frame, at(device), repeat);
            let (ran, left) = (run(case.wrapper.fd())?, run(case.baseline.fd())?);
            ensure!(ran.result == result, "{}: result {} instead of {result}", case.row, ran.result);
            let is_translated = matches!(case.sort, Sort::Established { .. } | Sort::New { .. });
            let is_changed = ran.packet != left.packet;
            let not = if is_changed { "" } else { "not " };
            ensure!(is_changed == is_translated, "{}: the packet is {not}translated", case.row);
        }
        Ok(case)
    }

    /// Goes through all varied values before each sample, and in it.
    pub(crate) fn through_many(self) -> Self {
        Self { repeat: MANY, warm_up: MANY, ..self }
    }

    /// Goes through more entries than the caches hold for sure.
    pub(crate) fn through_entries(self) -> Self {
        Self { estimate: Estimate::Median, ..self.through_many() }
    }

    /// Opens a flow each time, as this counts.
    pub(crate) fn counted_by(self, opened: impl Fn() -> Result<u64> + 'w) -> Self {
        Self { opened: Some(Box::new(opened)), ..self }
    }

    /// Leaves something behind that is to be cleaned up.
    pub(crate) fn cleaned_by(self, after: After<'w>) -> Self {
        Self { repeat: REPEAT_NEW, after, ..self }
    }

    /// Runs the program so often, for its effects.
    pub(crate) fn run(&self, repeat: u32) -> Result<()> {
        sys::run(self.wrapper.fd(), self.kind, &self.frame, at(self.device), repeat)?;
        Ok(())
    }
}
