//! Where the machine's time goes.

use std::{fmt, fs, time::Instant};

/// A beginning. Displayed: the seconds since then, and how many of them the processor was in programs, in the kernel, and idle.
pub(crate) struct Times {
    start: Instant,
    spent: [f32; 3],
}

impl Times {
    pub(crate) fn now() -> Self {
        Self { start: Instant::now(), spent: spent() }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = spent();
        let [programs, kernel, idle] = [0, 1, 2].map(|kind| now[kind] - self.spent[kind]);
        let seconds = self.start.elapsed().as_secs_f32();
        write!(
            f,
            "{seconds:.1} s: {programs:.1} s in programs, {kernel:.1} s in the kernel, {idle:.1} s idle"
        )
    }
}

/// In programs, in the kernel, and idle, in seconds since the start of the machine: proc_stat(5). Zero if it cannot be read.
fn spent() -> [f32; 3] {
    const TICKS: f32 = 100.0;
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f32> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        // user, nice, system, idle, iowait, irq, softirq.
        [user, nice, system, idle, iowait, irq, softirq, ..] => {
            [user + nice, system + irq + softirq, idle + iowait].map(|ticks| ticks / TICKS)
        }
        _ => [0.0; 3],
    }
}
