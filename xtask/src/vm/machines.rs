//! The machines of a run, some at a time: of a kernel that runs all suites two, so that no machine is the last one for long.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
};

use anyhow::Result;

use super::{
    VmArgs,
    initramfs::{self, Guest},
    kernel::{self, Kernel, KernelFiles},
    qemu::{self, Run},
};

/// How many machines run at a time: each has one processor.
const AT_A_TIME: usize = 2;

/// A machine that ran.
pub(super) struct Machine {
    pub(super) release: String,
    pub(super) log: PathBuf,
    pub(super) run: Run,
}

/// A machine to run.
struct Job<'a> {
    kernel: Kernel,
    /// Which of the kernel's machines, from 0.
    half: usize,
    suites: Vec<&'a str>,
    /// About how long it takes, compared with others.
    cost: u32,
}

/// Runs the machines of each kernel. The machines that take longest come first.
pub(super) fn run(
    kernels: &[Kernel],
    cache: &Path,
    args: &VmArgs,
    guest: &Guest,
) -> Result<BTreeMap<Kernel, Vec<Result<Machine>>>> {
    // Before the first machine, so that two of a kernel do not both download it.
    let files =
        kernels.iter().map(|kernel| Ok((*kernel, kernel::fetch(*kernel, cache, args.mirror.as_deref())?)));
    let files = files.collect::<Result<BTreeMap<_, _>>>()?;
    let mut jobs: Vec<_> = kernels.iter().flat_map(|kernel| jobs(*kernel, args)).collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.cost));
    let (waiting, done) = (Mutex::new(jobs.into_iter()), Mutex::new(BTreeMap::<_, Vec<_>>::new()));
    let work = || {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(job) = next else { break };
            let machine = machine(&job, &files[&job.kernel], cache, args, guest);
            done.lock().unwrap_or_else(PoisonError::into_inner).entry(job.kernel).or_default().push(machine);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join())
    })
    .map_err(|_| anyhow::anyhow!("the thread of a machine panicked"))?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn machine(
    job: &Job<'_>,
    files: &KernelFiles,
    cache: &Path,
    args: &VmArgs,
    guest: &Guest,
) -> Result<Machine> {
    let name = format!("{}-{}", job.kernel.name(), job.half + 1);
    let initramfs = cache.join(format!("initramfs-{name}.cpio"));
    let log = cache.join(format!("console-{name}.log"));
    let run = if args.last {
        qemu::read(&log)?
    } else {
        initramfs::write(&initramfs, files, guest, &job.suites)?;
        qemu::run(files, &initramfs, &log, &job.suites, args)?
    };
    Ok(Machine { release: files.release.clone(), log, run })
}

/// A kernel's machines. The requested suites have one machine; else those with clusters have one, and those with
/// single packets another.
fn jobs(kernel: Kernel, args: &VmArgs) -> Vec<Job<'_>> {
    let job = |half, suites: Vec<(&'static str, u32)>| {
        let cost = suites.iter().map(|(_, cost)| cost).sum();
        Job { kernel, half, suites: suites.into_iter().map(|(suite, _)| suite).collect(), cost }
    };
    if !args.only.is_empty() {
        let suites = args.only.iter().map(String::as_str).collect();
        return vec![Job { kernel, half: 0, suites, cost: 1 }];
    }
    let (first, second): (Vec<_>, Vec<_>) =
        suites(kernel, args.is_short).into_iter().partition(|(suite, _)| !IN_SECOND.contains(suite));
    vec![job(0, first), job(1, second)]
}

/// The suites of a kernel's second machine.
const IN_SECOND: [&str; 3] = ["packets", "verifier", "networks"];

/// The suites of a kernel's machines, and about how many seconds each one takes: all but networks, which take longer than all
/// else. In short, packets and sockets of dead endpoints are for the oldest and the newest kernel alone: others load programs of the
/// same object, and have them at work in `smoke`, of which stacked uplinks are left to the networks. The newest one tries the
/// networks that this machine's own kernel may not be able to make.
fn suites(kernel: Kernel, is_short: bool) -> Vec<(&'static str, u32)> {
    let is_at_an_end = kernel.is_at_an_end();
    [
        ("node", true, 150),
        ("packets", is_at_an_end || !is_short, 200),
        ("verifier", true, 60),
        ("smoke", !is_short, 300),
        ("smoke::pods", is_short, 150),
        ("smoke::a_check", is_at_an_end && is_short, 40),
        ("socket_endpoints", is_at_an_end, 100),
        ("networks", kernel.is_newest() && is_short, 300),
    ]
    .into_iter()
    .filter_map(|(suite, runs, cost)| runs.then_some((suite, cost)))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_machines_of_a_kernel_run_each_suite_once() {
        for (kernel, is_short) in [Kernel::V5_10, Kernel::V6_1, Kernel::V6_12, Kernel::Newest]
            .into_iter()
            .flat_map(|kernel| [(kernel, true), (kernel, false)])
        {
            let args = VmArgs { is_short, ..VmArgs::of_all() };
            let run: Vec<_> = jobs(kernel, &args).into_iter().flat_map(|job| job.suites).collect();
            let all: BTreeSet<_> = suites(kernel, is_short).into_iter().map(|(suite, _)| suite).collect();
            assert_eq!(run.len(), all.len(), "{kernel:?}");
            assert_eq!(run.into_iter().collect::<BTreeSet<_>>(), all, "{kernel:?}");
        }
    }

    #[test]
    fn what_is_asked_for_runs_in_one_machine() {
        let only = vec!["node".to_owned(), "packets".to_owned()];
        let args = VmArgs { only, ..VmArgs::of_all() };
        let jobs = jobs(Kernel::V6_1, &args);
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].suites, ["node", "packets"]);
    }
}
