//! Runs one machine and reads its console.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{VmArgs, kernel::KernelFiles, report::Report};

/// Plenty: without hardware support a machine takes minutes, and networks take as long again.
const LIMIT: Duration = Duration::from_secs(2400);

/// Everything the accelerator can do but one instruction: a software-emulated CMPXCHG16B that is interrupted before its
/// result is tested leaves rubbish in the flags register (seen with QEMU 7.2), and the kernel, which allocates memory with
/// it where it can, dies of a double fault now and then. Five levels of page tables and the like only take time. So do fast string
/// operations (ERMS, FSRM): for them the kernel copies and clears memory by `rep movsb` and `rep stosb`, which are emulated byte by byte, and
/// the verifier copies its states all the time. Without them loading all programs takes a third of the time.
const CPU: &str = "max,-cx16,-la57,-smap,-smep,-pku,-erms,-fsrm";

/// - The timer works, but where the host is busy it may be too slow for the kernel's check of it.
/// - Mitigations of processors' faults cost an emulated one much: with page table isolation each system call empties its TLB.
/// - Interfaces and programs come and go all the time, and each time the kernel waits for grace periods.
/// - Feature 112 is `X86_FEATURE_REP_GOOD`: without it no `rep movsq` either, for the reason of [`CPU`].
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 loglevel=4 no_timer_check mitigations=off \
    rcupdate.rcu_expedited=1 clearcpuid=112 rdinit=/init";

/// Without CMPXCHG16B, Linux 7 allocates no memory for socket storage (`kmalloc_nolock`) but from caches that are checked. That
/// takes time, so it is not for older ones.
const CHECKED_CACHES: &str = " slab_debug=F,kmalloc-*";

/// Lines of the console to show when a check failed.
const TAIL: usize = 60;

/// The result of running a machine.
pub(super) struct Run {
    pub(super) report: Report,
    pub(super) time: Duration,
    /// The end of the console.
    pub(super) tail: String,
}

/// Reads the report of a machine that ran before, from its console.
pub(super) fn read(log: &Path) -> Result<Run> {
    let text = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    let text = String::from_utf8_lossy(&text);
    let mut report = Report::default();
    text.lines().for_each(|line| report.line(line));
    if !report.is_done {
        report.fail("the machine ended before its checks did");
    }
    Ok(Run { report, time: Duration::ZERO, tail: String::new() })
}

/// Boots a kernel and returns its init's report.
pub(super) fn run(
    kernel: &KernelFiles,
    initramfs: &Path,
    log: &Path,
    suites: &[&str],
    args: &VmArgs,
) -> Result<Run> {
    let caches = if kernel.release.starts_with(['5', '6']) { "" } else { CHECKED_CACHES };
    let suites = format!(" suites={}", suites.join(","));
    let shape = args.shape.as_ref().map(|shape| format!(" shape=\"{shape}\"")).unwrap_or_default();
    let short = if args.is_short { " short=1" } else { "" };
    let start = Instant::now();
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", if args.kvm { "kvm" } else { "tcg" }, "-cpu", CPU, "-smp", "1", "-m", "1G"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-append", &format!("{COMMAND_LINE}{caches}{suites}{shape}{short}")])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run qemu-system-x86_64")?;
    let console = child.stdout.take().context("qemu has no console")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { break };
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });

    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let (mut report, mut console) = (Report::default(), Vec::new());
    loop {
        match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                report.line(&line);
                console.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                report.fail(format!("the machine was still running after {} s", LIMIT.as_secs()));
                child.kill()?;
                break;
            }
        }
    }
    child.wait()?;
    drop(lines);
    reader.join().map_err(|_| anyhow::anyhow!("the console's reader panicked"))?;
    if !report.is_done && report.failed.is_empty() {
        report.fail("the machine ended before its checks did");
    }
    let tail = console[console.len().saturating_sub(TAIL)..].join("\n");
    Ok(Run { report, time: start.elapsed(), tail })
}
