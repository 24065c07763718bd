//! Virtual machines with the kernels that Debian packages: old verifiers, old hooks, real boots.

mod initramfs;
mod kernel;
mod qemu;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use self::kernel::Kernel;
use crate::{
    build::{self, Executables},
    setup,
    workspace::{say, target_dir},
};

/// Arguments of `vm`.
#[derive(Args)]
pub(crate) struct VmArgs {
    /// A kernel to boot (may be repeated). Default: all.
    #[arg(long = "kernel", value_enum, value_name = "VERSION")]
    kernels: Vec<Kernel>,
    /// Keep and name the console logs of machines that passed too.
    #[arg(long)]
    keep_log: bool,
    /// Where to get Debian's packages. Default: the mirror that this machine uses.
    #[arg(long, value_name = "URL", env = "DEBIAN_MIRROR")]
    mirror: Option<String>,
    /// Use the processor's support for virtual machines. Not the default: some hosts have a /dev/kvm that
    /// does not work, and without it the machines are quick enough.
    #[arg(long)]
    kvm: bool,
    /// Run this agent in the machines instead of the one built with the tests.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// How many machines run at a time: each has one processor.
const AT_A_TIME: usize = 2;

/// `cargo xtask vm`.
pub(crate) fn main(args: &VmArgs) -> Result<()> {
    setup::tests()?;
    let kernels = if args.kernels.is_empty() { Kernel::value_variants() } else { &args.kernels };
    let (_, failed) = boot(kernels, &build::for_tests()?, args)?;
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

/// Boots all kernels with what was built and returns how many checks passed and failed.
pub(crate) fn all(built: &Executables) -> Result<(u64, u64)> {
    let mirror = std::env::var("DEBIAN_MIRROR").ok();
    let args = VmArgs { kernels: Vec::new(), keep_log: false, mirror, kvm: false, agent: None };
    boot(Kernel::value_variants(), built, &args)
}

fn boot(kernels: &[Kernel], built: &Executables, args: &VmArgs) -> Result<(u64, u64)> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machines are made for x86-64 hosts only");
    }
    let cache = target_dir().join("vm");
    let find = |name: &str| built.get(name).with_context(|| format!("cargo has built no `{name}`"));
    let guest = Guest {
        init: find("vm_init")?,
        agent: args.agent.as_deref().map_or_else(|| find("proxy-agent").map(PathBuf::as_path), Ok)?,
        verifier: find("packets_verifier")?,
    };
    let mut verified = Vec::new();
    let (mut passed, mut failed) = (0, 0);
    for group in kernels.chunks(AT_A_TIME) {
        let reports = thread::scope(|scope| {
            let machines: Vec<_> = group
                .iter()
                .map(|kernel| {
                    let (cache, guest) = (&cache, &guest);
                    scope.spawn(move || machine(*kernel, cache, args, guest))
                })
                .collect();
            machines.into_iter().map(|machine| machine.join()).collect::<Vec<_>>()
        });
        for (kernel, report) in group.iter().zip(reports) {
            let report = report.map_err(|_| anyhow::anyhow!("the thread of a machine panicked"))?;
            let report = report.with_context(|| format!("kernel {}", kernel.name()))?;
            print(*kernel, &report, args.keep_log);
            passed += report.passed;
            failed += report.failed.len() as u64;
            verified.push((kernel.name(), report.verified));
        }
    }
    print_verified(&verified);
    Ok((passed, failed))
}

/// What is put into a machine.
struct Guest<'a> {
    init: &'a Path,
    agent: &'a Path,
    /// The test that loads every program.
    verifier: &'a Path,
}

/// What a machine reported.
struct Report {
    release: String,
    seconds: u64,
    passed: u64,
    failed: Vec<String>,
    /// By program: how many instructions the verifier went through.
    verified: BTreeMap<String, String>,
    log: PathBuf,
    /// The end of the console, when something failed.
    tail: String,
}

fn machine(kernel: Kernel, cache: &Path, args: &VmArgs, guest: &Guest<'_>) -> Result<Report> {
    let files = kernel::fetch(kernel, cache, args.mirror.as_deref())?;
    let initramfs = cache.join(format!("initramfs-{}.cpio", kernel.name()));
    initramfs::write(&initramfs, &files, guest)?;
    qemu::run(&files, &initramfs, &cache.join(format!("console-{}.log", kernel.name())), args.kvm)
}

fn print(kernel: Kernel, report: &Report, keep_log: bool) {
    let Report { release, seconds, passed, failed, log, tail, .. } = report;
    if failed.is_empty() {
        println!("vm {:7} {release}: {passed} checks passed in {seconds} s", kernel.name());
        if keep_log {
            println!("  console: {}", log.display());
        }
        return;
    }
    println!("vm {:7} {release}: {passed} checks passed, {} FAILED", kernel.name(), failed.len());
    for check in failed {
        println!("  FAILED {check}");
    }
    println!("{tail}");
    say(format!("the whole console: {}", log.display()));
}

/// Each program's cost to each verifier.
fn print_verified(kernels: &[(&str, BTreeMap<String, String>)]) {
    let programs: BTreeSet<_> = kernels.iter().flat_map(|(_, verified)| verified.keys()).collect();
    let header: String = kernels.iter().map(|(kernel, _)| format!("{kernel:>9}")).collect();
    println!("{:26}{header}", "instructions verified");
    for program in programs {
        let counts = kernels.iter().map(|(_, verified)| verified.get(program).map_or("?", String::as_str));
        println!("{program:26}{}", counts.map(|count| format!("{count:>9}")).collect::<String>());
    }
}
