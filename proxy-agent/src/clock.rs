//! The kernel's coarse clock, in jiffies: the time stamps of flows.

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_getres, clock_gettime},
};

const NANOSECONDS: u64 = 1_000_000_000;

/// How long before the start of the clock jiffies wrap for the first time: the kernel starts them so that
/// forgetful code shows (INITIAL_JIFFIES in `include/linux/jiffies.h`).
const WRAP_SECONDS: u32 = 300;

/// A moment in jiffies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// Jiffies, truncated.
    now: u32,
    /// Jiffies per second.
    hz: u32,
}

impl Clock {
    /// Now; `None` if the kernel does not report it.
    pub(crate) fn read() -> Option<Self> {
        // The coarse clocks advance once per jiffy, and their resolution is that of a jiffy.
        let resolution = nanoseconds(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).ok()?)?;
        let uptime = nanoseconds(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?)?;
        Self::at(uptime, resolution)
    }

    /// A moment of a test.
    #[cfg(test)]
    pub(crate) fn fixed(now: u32, hz: u32) -> Self {
        Self { now, hz }
    }

    fn at(uptime: u64, resolution: u64) -> Option<Self> {
        // With hardly any resolution it is not the coarse clock we know.
        let hz = u32::try_from((NANOSECONDS + resolution / 2).checked_div(resolution)?).ok()?;
        if !(10..=10_000).contains(&hz) {
            return None;
        }
        let ticks = (uptime / resolution) as u32;
        Some(Self { now: ticks.wrapping_sub(WRAP_SECONDS * hz), hz })
    }

    /// Jiffies, truncated.
    pub(crate) fn now(self) -> u32 {
        self.now
    }

    /// The time this many seconds ago, in jiffies, truncated.
    pub(crate) fn ago(self, seconds: u32) -> u32 {
        self.now.wrapping_sub(seconds.wrapping_mul(self.hz))
    }

    /// This many jiffies in seconds, rounded down.
    pub(crate) fn seconds(self, jiffies: u32) -> u32 {
        jiffies / self.hz
    }

    /// Seconds since a moment in truncated jiffies. One that seems to lie a little in the future was just now.
    pub(crate) fn seconds_since(self, then: u32) -> u64 {
        let ago = self.now.wrapping_sub(then);
        if ago > u32::MAX - 60 * self.hz { 0 } else { (ago / self.hz).into() }
    }
}

/// This many seconds in jiffies of this kernel.
pub(crate) fn jiffies(seconds: u32) -> u32 {
    /// For kernels that do not report it: better too long than too short.
    const HIGHEST_HZ: u32 = 1_000;
    seconds.saturating_mul(Clock::read().map_or(HIGHEST_HZ, |clock| clock.hz))
}

fn nanoseconds(time: TimeSpec) -> Option<u64> {
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    Some(seconds * NANOSECONDS + u64::try_from(time.tv_nsec()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_since_a_stamp() {
        // 301 s after boot with 250 ticks a second: the counter wrapped a second ago.
        let clock = Clock::at(301 * NANOSECONDS, 4_000_000).unwrap();
        assert_eq!(clock, Clock { now: 250, hz: 250 });
        assert_eq!([clock.ago(0), clock.ago(1), clock.ago(2)], [250, 0, 0u32.wrapping_sub(250)]);
        for (then, expected) in [(250, 0), (0, 1), (0u32.wrapping_sub(500), 3), (300, 0)] {
            assert_eq!(clock.seconds_since(then), expected, "{then}");
        }
    }

    #[test]
    fn unlikely_clocks_are_not_used() {
        assert_eq!(Clock::at(NANOSECONDS, 1), None);
        assert_eq!(Clock::at(NANOSECONDS, 0), None);
    }

    /// The kernel shows its jiffies in this file, to root and if it was built to.
    #[test]
    fn agrees_with_the_kernel() {
        let Ok(list) = std::fs::read_to_string("/proc/timer_list") else { return };
        let Some(jiffies) = list.lines().find_map(|line| line.strip_prefix("jiffies: ")) else { return };
        let jiffies = jiffies.parse::<u64>().unwrap() as u32;
        let clock = Clock::read().unwrap();
        let ahead = clock.now.wrapping_sub(jiffies) as i32;
        assert!(ahead.unsigned_abs() < 2 * clock.hz, "{ahead} jiffies ahead");
    }
}
