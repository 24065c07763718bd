//! Waiting for a condition, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// The interval between checks grows with time, so that they take little CPU from the process under test.
fn between_looks(elapsed: Duration) -> Duration {
    (elapsed / 10).clamp(Duration::from_millis(10), Duration::from_millis(200))
}

/// Looks again and again until there is a value; an error ends it, and so does the deadline.
pub fn until<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        let elapsed = start.elapsed();
        if elapsed > deadline {
            bail!("waited {} s for {what}", deadline.as_secs_f32());
        }
        thread::sleep(between_looks(elapsed));
    }
}
