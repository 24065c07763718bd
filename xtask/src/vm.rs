//! Virtual machines with the kernels that Debian packages: old verifiers, old hooks, real boots.

mod initramfs;
mod kernel;
mod machines;
mod networks;
mod qemu;
mod record;
mod report;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    initramfs::{Guest, TEST_PROGRAMS},
    kernel::Kernel,
    machines::Machine,
    networks::Networks,
    qemu::Run,
    record::Record,
    report::{Failure, Report},
};
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
    /// Run nothing but this suite: `node`, `packets`, `verifier`, a file of `tests/tests/traffic`, such as
    /// `smoke` or `networks`, or some tests of one, such as `smoke::pods` (may be repeated).
    #[arg(long, value_name = "SUITE", value_delimiter = ',')]
    only: Vec<String>,
    /// With `--only networks`: nothing but the shapes whose name contains this, or one of several that `|`
    /// separates; also with `--bless`.
    #[arg(long, value_name = "NAME", requires = "only")]
    shape: Option<String>,
    /// Write the machines' reports to docs/kernels.md and docs/networks.md instead of comparing with them; with
    /// `--only networks` to the latter alone, with `--only verifier` the verifier's numbers alone.
    #[arg(long)]
    bless: bool,
    /// Take the reports of the last run instead of running the machines.
    #[arg(long)]
    last: bool,
    /// As little as `cargo xtask test` runs: three kernels, packets for the oldest and the newest of them alone, and for the newest one networks
    /// that not every kernel can make.
    #[arg(long = "short", conflicts_with = "bless")]
    is_short: bool,
}

/// `cargo xtask vm`.
pub(crate) fn main(args: &VmArgs) -> Result<()> {
    setup::tests()?;
    let kernels = match &args.kernels[..] {
        [] if args.is_short => &SHORT,
        [] => Kernel::value_variants(),
        kernels => kernels,
    };
    let (_, failed) = boot(kernels, &build::for_some_tests(&TEST_PROGRAMS)?, args)?;
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

/// The kernels of `cargo xtask test`, which may not take all night: the oldest, the newest, and a common one.
const SHORT: [Kernel; 3] = [Kernel::V5_10, Kernel::V6_1, Kernel::Newest];

/// Boots some kernels with these executables, in short, and returns how many checks passed and failed.
pub(crate) fn short(built: &Executables) -> Result<(u64, u64)> {
    boot(&SHORT, built, &VmArgs { is_short: true, ..VmArgs::of_all() })
}

/// Boots all kernels with all that there is for them.
pub(crate) fn whole() -> Result<()> {
    main(&VmArgs::of_all())?;
    main(&VmArgs {
        kernels: Kernel::value_variants().iter().copied().filter(|kernel| kernel.runs_networks()).collect(),
        only: vec!["networks".to_owned()],
        ..VmArgs::of_all()
    })
}

impl VmArgs {
    /// As without any argument.
    fn of_all() -> Self {
        Self {
            kernels: Vec::new(),
            keep_log: false,
            mirror: std::env::var("DEBIAN_MIRROR").ok(),
            kvm: false,
            agent: None,
            only: Vec::new(),
            shape: None,
            bless: false,
            last: false,
            is_short: false,
        }
    }
}

fn boot(kernels: &[Kernel], built: &Executables, args: &VmArgs) -> Result<(u64, u64)> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the virtual machines are made for x86-64 hosts only");
    }
    let cache = cache();
    let guest = Guest::new(built, args.agent.as_deref(), &cache)?;
    let (mut record, mut networks) = (Record::committed()?, Networks::committed()?);
    let (mut passed, mut failed) = (0, 0);
    let (mut has_networks, mut has_verified) = (false, false);
    for (kernel, machines) in machines::run(kernels, &cache, args, &guest)? {
        let mut report = Report::empty();
        for machine in machines {
            let Machine { release, log, run } =
                machine.with_context(|| format!("kernel {}", kernel.name()))?;
            print(kernel, &release, &run, &log, args.keep_log);
            report.add(run.report);
        }
        if !args.bless {
            let known = report.failed.len();
            compare(&record, &networks, kernel, &mut report, args);
            print_failures(&report.failed[known..]);
        }
        record.replace(kernel, &report, args.only.is_empty());
        has_verified |= !report.verified.is_empty();
        has_networks |= !report.networks.is_empty();
        networks.replace(kernel, &report, args.shape.is_none());
        passed += report.passed;
        failed += report.failed.len() as u64;
    }
    println!("\n{}", record.verified());
    if args.bless {
        if has_verified {
            say(format!("wrote {}", record.write()?.display()));
        }
        if has_networks {
            say(format!("wrote {}", networks.write()?.display()));
        }
    }
    Ok((passed, failed))
}

/// Where kernels, archives and logs are.
fn cache() -> PathBuf {
    target_dir().join("vm")
}

/// Downloads the kernels of the short run that are not there yet.
pub(crate) fn fetch() -> Result<()> {
    let mirror = VmArgs::of_all().mirror;
    SHORT.iter().try_for_each(|kernel| kernel::fetch(*kernel, &cache(), mirror.as_deref()).map(drop))
}

/// Each of the documents' tables is a check. A machine that ran but some of its programs reported little of them.
fn compare(record: &Record, networks: &Networks, kernel: Kernel, report: &mut Report, args: &VmArgs) {
    // A machine that ended early has reported only a part.
    if !report.is_done {
        return;
    }
    let mut tables = Vec::new();
    if args.only.is_empty() {
        tables.extend(record.compare(kernel, report));
    }
    if kernel.runs_networks() && !report.networks.is_empty() {
        tables.push(networks.compare(kernel, report, args.shape.is_none() && !args.is_short));
    }
    for differences in tables {
        report.passed += u64::from(differences.is_empty());
        for difference in differences {
            report.fail(format!("{difference} (is it meant to be so? `cargo xtask vm --bless`)"));
        }
    }
}

fn print(kernel: Kernel, release: &str, run: &Run, log: &Path, keep_log: bool) {
    let Run { report, time, tail } = run;
    let (kernel, seconds) = (kernel.name(), time.as_secs());
    let verdict = match report.failed.len() {
        0 => String::new(),
        failed => format!(", {failed} FAILED"),
    };
    println!("vm {kernel:7} {release}: {} checks passed{verdict} in {seconds} s", report.passed);
    for (reason, [whole, in_part]) in lacking(report) {
        println!("  not possible on this kernel: {reason}");
        for (how, tests) in [("not", whole), ("in part", in_part)] {
            if !tests.is_empty() {
                println!("    {how}: {}", tests.join(", "));
            }
        }
    }
    print_failures(&report.failed);
    if !report.is_done {
        println!("{tail}");
    }
    if keep_log || !report.failed.is_empty() {
        say(format!("the whole console: {}", log.display()));
    }
}

fn print_failures(failures: &[Failure]) {
    for failure in failures {
        println!("  FAILED {}", failure.name);
        failure.output.iter().for_each(|line| println!("    {line}"));
    }
}

/// By reason: the tests that were not possible at all, and those that were in part.
fn lacking(report: &Report) -> BTreeMap<&str, [Vec<&str>; 2]> {
    let mut reasons = BTreeMap::<_, [Vec<_>; 2]>::new();
    for lacking in &report.lacking {
        let kinds = reasons.entry(lacking.reason.as_str()).or_default();
        kinds[usize::from(lacking.in_part)].push(lacking.test.as_str());
    }
    reasons
}
