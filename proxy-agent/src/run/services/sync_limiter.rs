//! When changes may be applied: `--min-sync-period`.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Lets some time pass between the end of one application of changes and the start of the next; changes in the
/// meantime are applied together.
#[derive(Debug)]
pub(in crate::run) struct SyncLimiter {
    /// At least this long.
    period: Duration,
    /// The end of the last one.
    done: Option<Instant>,
    wanted: bool,
}

impl SyncLimiter {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, done: None, wanted: false }
    }

    /// There is something to apply.
    pub(super) fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether changes wait to be applied.
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

    async fn waited(sync_limiter: &SyncLimiter) -> Option<u64> {
        let start = Instant::now();
        timeout(Duration::from_secs(60), sync_limiter.due()).await.ok()?;
        Some(u64::try_from(start.elapsed().as_millis()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_period_runs_from_the_end_of_the_last() {
        let mut sync_limiter = SyncLimiter::new(Duration::from_secs(1));
        assert_eq!(waited(&sync_limiter).await, None, "nothing to do");
        sync_limiter.want();
        assert_eq!(waited(&sync_limiter).await, Some(0), "the first is applied at once");
        sync_limiter.done();
        assert_eq!(waited(&sync_limiter).await, None, "it was applied");
        advance(Duration::from_millis(300)).await;
        sync_limiter.want();
        sync_limiter.want();
        sync_limiter.done();
        sync_limiter.want();
        assert_eq!(waited(&sync_limiter).await, Some(1000));
        sync_limiter.done();
        advance(Duration::from_secs(5)).await;
        sync_limiter.want();
        assert_eq!(waited(&sync_limiter).await, Some(0), "long after the last, at once");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_period_changes_do_not_wait() {
        let mut sync_limiter = SyncLimiter::new(Duration::ZERO);
        for _ in 0..3 {
            sync_limiter.want();
            assert_eq!(waited(&sync_limiter).await, Some(0));
            sync_limiter.done();
        }
    }
}
