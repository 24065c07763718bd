//! Runs one machine and reads its console.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{Report, kernel::KernelFiles};

/// Plenty: without hardware support a machine takes about a quarter of a minute.
const LIMIT: Duration = Duration::from_secs(240);

/// Everything the accelerator can do but one instruction: a software-emulated CMPXCHG16B that is interrupted before its
/// result is tested leaves rubbish in the flags register (seen with QEMU 7.2), and the kernel, which allocates memory with
/// it where it can, dies of a double fault now and then.
const CPU: &str = "max,-cx16";

/// Lines of the console to show when a check failed.
const TAIL: usize = 60;

/// Boots a kernel and returns what its init reported. The init prints `CHECK PASS|FAIL name`, and `DONE` at the end;
/// the verifier test prints `VERIFIED program instructions`.
pub(super) fn run(kernel: &KernelFiles, initramfs: &Path, log: &Path, kvm: bool) -> Result<Report> {
    let start = Instant::now();
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", if kvm { "kvm" } else { "tcg" }, "-cpu", CPU, "-smp", "1", "-m", "1G"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 panic=-1 loglevel=4 rdinit=/init"])
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
    let (mut passed, mut failed, mut console, mut done) = (0, Vec::new(), Vec::new(), false);
    let mut verified = BTreeMap::new();
    loop {
        match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => {
                writeln!(file, "{line}")?;
                if line.starts_with("CHECK PASS ") {
                    passed += 1;
                } else if let Some(check) = line.strip_prefix("CHECK FAIL ") {
                    failed.push(check.to_owned());
                } else if let Some((program, count)) =
                    line.strip_prefix("VERIFIED ").and_then(|line| line.split_once(' '))
                {
                    verified.insert(program.to_owned(), count.to_owned());
                }
                done |= line == "DONE";
                console.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                failed.push(format!("the machine was still running after {} s", LIMIT.as_secs()));
                child.kill()?;
                break;
            }
        }
    }
    child.wait()?;
    drop(lines);
    reader.join().map_err(|_| anyhow::anyhow!("the console's reader panicked"))?;
    if !done && failed.is_empty() {
        failed.push("the machine ended before its checks did".to_owned());
    }
    let tail = console[console.len().saturating_sub(TAIL)..].join("\n");
    let seconds = start.elapsed().as_secs();
    Ok(Report {
        release: kernel.release.clone(),
        seconds,
        passed,
        failed,
        verified,
        log: log.to_owned(),
        tail,
    })
}
