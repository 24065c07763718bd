//! How long to wait before trying again.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

/// Doubling delays with jitter, so that the agents of a cluster do not come back all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next delay: between half and all of first, twice first, and so on up to the longest.
    pub(super) fn delay(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.longest);
        full / 2 + jittered(full / 2)
    }

    /// All is well: begin with the first delay again.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A random time up to this.
pub(super) fn jittered(longest: Duration) -> Duration {
    // The keys of a fresh hasher are random: no generator of our own is needed.
    let random = RandomState::new().hash_one(()) as u32;
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_within_jitter_up_to_the_longest() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(500));
        for full in [100, 200, 400, 500, 500] {
            let delay = backoff.delay();
            assert!((ms(full / 2)..=ms(full)).contains(&delay), "{delay:?} of {full} ms");
        }
        backoff.reset();
        assert!(backoff.delay() <= ms(100));
    }
}
