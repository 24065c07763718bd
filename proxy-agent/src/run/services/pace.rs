//! When changes may be applied: `--min-sync-period`.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets some time pass between the end of one application of changes and the start of the next; what comes in the
/// meantime is applied together.
#[derive(Debug)]
pub(in crate::run) struct Pace {
    /// At least this long.
    period: Duration,
    /// The end of the last one.
    done: Option<Instant>,
    wanted: bool,
}

impl Pace {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, done: None, wanted: false }
    }

    /// There is something to apply.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Is there something to apply?
    pub(in crate::run) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Resolves when there is something to apply, and it may be.
    pub(crate) async fn due(&self) {
        if !self.wanted {
            std::future::pending::<()>().await;
        }
        // A timer, even one that is due, rounds up to the next millisecond.
        if let Some(at) = self.done.map(|done| done + self.period)
            && at > Instant::now()
        {
            sleep_until(at).await;
        }
    }

    /// Everything was applied.
    pub(in crate::run) fn done(&mut self) {
        self.wanted = false;
        self.done = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    async fn waited(pace: &Pace) -> Option<u64> {
        let start = Instant::now();
        timeout(Duration::from_secs(60), pace.due()).await.ok()?;
        Some(u64::try_from(start.elapsed().as_millis()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_period_runs_from_the_end_of_the_last() {
        let mut pace = Pace::new(Duration::from_secs(1));
        assert_eq!(waited(&pace).await, None, "nothing to do");
        pace.want();
        assert_eq!(waited(&pace).await, Some(0), "the first is applied at once");
        pace.done();
        assert_eq!(waited(&pace).await, None, "it was applied");
        advance(Duration::from_millis(300)).await;
        pace.want();
        pace.want();
        pace.done();
        pace.want();
        assert_eq!(waited(&pace).await, Some(1000));
        pace.done();
        advance(Duration::from_secs(5)).await;
        pace.want();
        assert_eq!(waited(&pace).await, Some(0), "long after the last, at once");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_period_there_is_no_wait() {
        let mut pace = Pace::new(Duration::ZERO);
        for _ in 0..3 {
            pace.want();
            assert_eq!(waited(&pace).await, Some(0));
            pace.done();
        }
    }
}
