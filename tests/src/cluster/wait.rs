//! Waiting for a condition, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// Looks again and again until there is a value; an error ends it, and so does the deadline.
pub fn until<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {} s for {what}", deadline.as_secs_f32());
        }
        thread::sleep(BETWEEN_LOOKS);
    }
}
