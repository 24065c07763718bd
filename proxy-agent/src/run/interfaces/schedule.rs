//! When to look at the interfaces.

use tokio::time::Instant;

/// The next reading of the network; it covers all events until then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::run) struct Schedule(Option<Instant>);

impl Schedule {
    /// Its time, if one is planned.
    pub(in crate::run) fn next(self) -> Option<Instant> {
        self.0
    }

    /// At once, unless a look is planned.
    pub(in crate::run) fn soon(&mut self) {
        self.0.get_or_insert_with(Instant::now);
    }

    /// At this time, or sooner if that is planned.
    pub(super) fn at(&mut self, at: Instant) {
        self.0 = Some(self.0.map_or(at, |before| before.min(at)));
    }

    /// At this time, regardless of earlier plans; `None`: not before the next request.
    pub(in crate::run) fn set(&mut self, at: Option<Instant>) {
        self.0 = at;
    }
}
