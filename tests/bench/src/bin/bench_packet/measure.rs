//! Takes the time.

use std::{
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use proxy_figures::{Statistic, Summary};
use proxy_packets::sys::{self, Kind};

use crate::{
    cases::{After, Case, Estimate},
    wrapper::empty,
};

/// Nanoseconds of a case.
#[derive(Default)]
struct Times {
    with: Vec<f64>,
    baseline: Vec<f64>,
}

/// A result.
pub(crate) struct Measured {
    /// Nanoseconds above the empty program, by case.
    pub(crate) above: Vec<Summary>,
    /// The empty program alone, of XDP and of tc.
    pub(crate) empty: [Summary; 2],
    /// The empty program behind a wrapper for IPv4, of XDP and of tc.
    pub(crate) wrapped: [Summary; 2],
}

/// Measures all cases in turn, so many times.
pub(crate) fn all(cases: &[Case<'_>], runs: u32) -> Result<Measured> {
    const REPEAT: u32 = 20_000;
    let kinds = [Kind::Xdp, Kind::Tc];
    let nothing = [empty(Kind::Xdp)?, empty(Kind::Tc)?];
    let mut alone = [Vec::new(), Vec::new()];
    let mut times: Vec<Times> = cases.iter().map(|_| Times::default()).collect();
    for run in 1..=runs {
        if io::stderr().is_terminal() {
            eprint!("\r{} cases, run {run} of {runs} ", cases.len());
        }
        for ((program, kind), times) in nothing.iter().zip(kinds).zip(&mut alone) {
            times.push(sample(program.as_fd(), kind, &[0; 128], 0, REPEAT)?);
        }
        for (case, times) in cases.iter().zip(&mut times) {
            let Case { kind, frame, device, repeat, warm_up, samples, .. } = case;
            let opened = |case: &Case<'_>| case.opened.as_ref().map(|count| count()).transpose();
            let before = opened(case)?;
            for (program, times) in [(&case.wrapper, &mut times.with), (&case.baseline, &mut times.baseline)]
            {
                if *warm_up > 0 {
                    sample(program.fd(), *kind, frame, *device, *warm_up)?;
                }
                for _ in 0..*samples {
                    times.push(sample(program.fd(), *kind, frame, *device, *repeat)?);
                }
            }
            if let (Some(before), Some(after)) = (before, opened(case)?) {
                let (new, all) = (after - before, u64::from(*repeat));
                // In a full map some meet a flow of before.
                ensure!(new * 100 >= all * 95, "{}: {new} of {all} packets opened flows", case.row);
            }
            match &case.after {
                After::Nothing => {}
                After::Undo(undo) => {
                    sample(undo.fd(), *kind, frame, *device, *repeat)?;
                }
                After::Call(clean) => clean()?,
            }
        }
    }
    if io::stderr().is_terminal() {
        eprintln!();
    }
    let wrapped = kinds.map(|kind| {
        let one = cases.iter().zip(&times).find(|(case, _)| case.kind == kind);
        Summary::minimum(one.iter().flat_map(|(_, times)| times.baseline.iter().copied()))
    });
    Ok(Measured {
        above: cases.iter().zip(&times).map(|(case, times)| times.above(case.estimate)).collect(),
        empty: alone.map(Summary::minimum),
        wrapped,
    })
}

impl Times {
    /// The number for all runs, and the quartiles of the differences of each run.
    fn above(&self, estimate: Estimate) -> Summary {
        let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        let differences = self.with.iter().zip(&self.baseline).map(|(with, baseline)| with - baseline);
        let median = Summary::median(differences);
        match estimate {
            Estimate::Smallest => Summary {
                value: least(&self.with) - least(&self.baseline),
                statistic: Statistic::Minimum,
                ..median
            },
            Estimate::Median => median,
        }
    }
}

/// Nanoseconds per repetition. The kernel's own measurement is in whole nanoseconds, so this takes the time that the thread
/// was running during the call.
fn sample(program: BorrowedFd<'_>, kind: Kind, frame: &[u8], device: u32, repeat: u32) -> Result<f64> {
    let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    sys::run(program, kind, frame, sys::at(device), repeat)?;
    let after = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    let elapsed = after - before;
    Ok((elapsed.tv_sec() as f64 * 1e9 + elapsed.tv_nsec() as f64) / f64::from(repeat))
}
