//! The results of attempts.

use std::{fmt, io, time::Duration};

/// Why attempts failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    /// The connection could not be made: refused, unreachable, no source port.
    pub errors: u64,
    /// There was no connection or no reply in time.
    pub timeouts: u64,
    /// The connection was reset, or closed without a reply.
    pub resets: u64,
}

impl Failures {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.errors + self.timeouts + self.resets
    }

    fn join(&mut self, Self { errors, timeouts, resets }: Self) {
        self.errors += errors;
        self.timeouts += timeouts;
        self.resets += resets;
    }

    fn add(&mut self, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::TimedOut => self.timeouts += 1,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => self.resets += 1,
            _ => self.errors += 1,
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { errors, timeouts, resets } = self;
        write!(f, "{errors} connect errors, {timeouts} timeouts, {resets} resets")
    }
}

/// The results of attempts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many got their reply in time.
    pub succeeded: u64,
    /// The others.
    pub failures: Failures,
    /// The error of the first that failed.
    pub first_failure: Option<String>,
    /// Until connected, in microseconds, of each attempt that was connected or timed out; for datagrams, until the reply.
    pub connects: Vec<u32>,
    /// How many succeeded in each whole second.
    pub seconds: Vec<u64>,
    /// From the first attempt to the end of the last.
    pub elapsed: Duration,
}

impl Tally {
    /// All attempts.
    pub fn tried(&self) -> u64 {
        self.succeeded + self.failures.total()
    }

    /// Successes of all attempts, from 0 to 1; 0 if nothing was tried.
    pub fn success(&self) -> f64 {
        if self.tried() == 0 { 0.0 } else { self.succeeded as f64 / self.tried() as f64 }
    }

    /// Successes per second.
    pub fn rate(&self) -> f64 {
        self.succeeded as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// The period has ended: attempts that ended after its last whole second are in no second's count.
    pub(super) fn end(&mut self, elapsed: Duration) {
        self.elapsed = elapsed;
        self.seconds.resize(elapsed.as_secs() as usize, 0);
    }

    /// Takes another period in, as if it had followed this one.
    pub fn join(&mut self, other: Self) {
        self.seconds.extend(other.seconds);
        self.succeeded += other.succeeded;
        self.failures.join(other.failures);
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.connects.extend(other.connects);
        self.elapsed += other.elapsed;
    }

    /// Notes an attempt that ended this long after the first one began.
    pub(super) fn add(&mut self, at: Duration, connect: Option<Duration>, result: io::Result<()>) {
        if let Some(connect) = connect {
            self.connects.push(u32::try_from(connect.as_micros()).unwrap_or(u32::MAX));
        }
        match result {
            Ok(()) => {
                self.succeeded += 1;
                let second = at.as_secs() as usize;
                if self.seconds.len() <= second {
                    self.seconds.resize(second + 1, 0);
                }
                self.seconds[second] += 1;
            }
            Err(error) => {
                self.failures.add(&error);
                self.first_failure.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} succeeded ({})", self.succeeded, self.tried(), self.failures)?;
        if let Some(first) = &self.first_failure {
            write!(f, ", the first failure: {first}")?;
        }
        Ok(())
    }
}
