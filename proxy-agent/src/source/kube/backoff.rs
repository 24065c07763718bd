//! How long to wait before trying again.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Delays with jitter, so that the agents of a cluster do not come back all at once: between half and all of `first`, twice
/// that, and so on up to `longest`.
pub(super) fn delays(first: Duration, longest: Duration) -> ExponentialBackoff {
    // The jitter is added: as much again at most.
    let delays = ExponentialBuilder::new().with_min_delay(first / 2).with_max_delay(longest / 2);
    delays.with_jitter().without_max_times().build()
}

/// A random time up to this.
pub(super) fn jittered(longest: Duration) -> Duration {
    longest.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_jitter_up_to_the_longest() {
        let ms = Duration::from_millis;
        let delays = delays(ms(100), ms(500));
        for (full, delay) in [100, 200, 400, 500, 500].into_iter().zip(delays) {
            assert!((ms(full / 2)..=ms(full)).contains(&delay), "{delay:?} of {full} ms");
        }
    }
}
