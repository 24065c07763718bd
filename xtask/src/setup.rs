//! Finds or installs the BPF tool chain and the tools that tests need.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::workspace::{find_program, is_root, line, output, run, say};

/// The version of bpf-linker that is installed when there is none.
const BPF_LINKER: &str = "0.13.0";

/// The target of the programs. They hold nothing that depends on the processor but its byte order.
pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Arguments of `setup`.
#[derive(Args)]
pub(crate) struct SetupArgs {
    /// The purpose of the machine.
    #[arg(long = "for", value_enum, default_value_t = Purpose::All)]
    purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Purpose {
    /// `cargo xtask build`.
    Build,
    /// `cargo xtask test`, and the virtual machines it starts.
    Test,
    /// Both.
    All,
}

/// A tool chain that builds for the BPF target.
pub(crate) enum Toolchain {
    /// A nightly of rustup that brings the source of `core`.
    Rustup(String),
    /// Debian's compiler, for which `core` comes already built.
    Debian,
}

impl Toolchain {
    /// `cargo build` for the BPF target.
    pub(crate) fn cargo_build(&self) -> Command {
        let mut command = match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo", "build", "-Zbuild-std=core"]);
                command
            }
            Self::Debian => {
                let mut command = crate::workspace::cargo();
                command.arg("build").env("RUSTC", DEBIAN_RUSTC);
                // aya-ebpf writes some instructions as assembly, which is unstable for this target.
                command.env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        command.current_dir(crate::workspace::root()).args(["--target", BPF_TARGET]);
        command
    }

    fn describe(&self) -> String {
        match self {
            Self::Rustup(name) => format!("rustup's {name} with rust-src"),
            Self::Debian => format!("{DEBIAN_RUSTC} with core for {BPF_TARGET}"),
        }
    }
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

/// A program that tests run, or the path of a file, and the Debian package it is in.
const TEST_TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("wg", "wireguard-tools"),
    ("nft", "nftables"),
    ("iptables-legacy", "iptables"),
    ("ipvsadm", "ipvsadm"),
    ("setpriv", "util-linux"),
    ("ethtool", "ethtool"),
    ("crun", "crun"),
    ("/usr/share/containers/seccomp.json", "golang-github-containers-common"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("dpkg-deb", "dpkg"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// `cargo xtask setup`.
pub(crate) fn main(args: &SetupArgs) -> Result<()> {
    let mut changed = false;
    if args.purpose != Purpose::Test {
        let (toolchain, installed) = bpf()?;
        changed |= installed;
        say(format!("BPF tool chain: {}, bpf-linker", toolchain.describe()));
    }
    if args.purpose != Purpose::Build {
        changed |= tests()?;
        let names: Vec<_> = TEST_TOOLS.iter().map(|(program, _)| *program).collect();
        say(format!("tools for tests: {}", names.join(", ")));
    }
    say(if changed { "everything is installed" } else { "everything was there already: nothing to do" });
    Ok(())
}

/// The BPF tool chain, and whether something had to be installed for it.
pub(crate) fn bpf() -> Result<(Toolchain, bool)> {
    let mut installed = false;
    let toolchain = match find_toolchain() {
        Some(toolchain) => toolchain,
        None => {
            say(
                "no compiler for BPF: no rustup nightly with rust-src, no Debian rustc-web. Installing the latter",
            );
            apt_install(DEBIAN_PACKAGES).context(
                "no compiler for BPF. Other than by Debian's packages it can be had by \
                 `rustup toolchain install nightly --component rust-src`",
            )?;
            installed = true;
            find_toolchain()
                .context("rustc-web is installed but has no `core` for BPF: is it 1.96 or newer?")?
        }
    };
    if find_program("bpf-linker").is_none() {
        install_bpf_linker(&toolchain)?;
        installed = true;
    }
    Ok((toolchain, installed))
}

/// Installs the programs that tests need, and returns whether something was missing.
pub(crate) fn tests() -> Result<bool> {
    let missing: Vec<_> = TEST_TOOLS
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(false);
    }
    apt_install(&missing)?;
    Ok(true)
}

fn find_toolchain() -> Option<Toolchain> {
    let debian = || {
        let sysroot = quiet(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
        let core = PathBuf::from(sysroot.trim()).join("lib/rustlib").join(BPF_TARGET).join("lib");
        core.is_dir().then_some(Toolchain::Debian)
    };
    rustup_nightly().map(Toolchain::Rustup).or_else(debian)
}

/// The nightlies of rustup.
fn nightlies() -> Vec<String> {
    let toolchains = quiet(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = toolchains.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("nightly")).map(str::to_owned).collect()
}

/// A nightly of rustup, whatever it has.
pub(crate) fn any_nightly() -> Option<String> {
    nightlies().into_iter().next()
}

/// An installed nightly that has the source of `core`. Does not install one: that needs the network and may surprise.
fn rustup_nightly() -> Option<String> {
    nightlies().into_iter().find(|name| {
        let sysroot = quiet(Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]));
        sysroot
            .is_some_and(|dir| PathBuf::from(dir.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
    })
}

/// bpf-linker reads the output of the compiler's LLVM, so its own must not be older.
fn install_bpf_linker(toolchain: &Toolchain) -> Result<()> {
    let mut install = crate::workspace::cargo();
    // The environment may hold a target directory that is not meant for this.
    install.env_remove("CARGO_TARGET_DIR").current_dir("/");
    install.args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER]);
    if let Toolchain::Debian = toolchain {
        let version = output(Command::new(DEBIAN_RUSTC).arg("-vV"))?;
        let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
        let major =
            llvm.and_then(|llvm| llvm.split('.').next()).context("`rustc -vV` does not name its LLVM")?;
        apt_install(&[&format!("llvm-{major}-dev"), "zlib1g-dev", "libzstd-dev", "g++"])?;
        install.env("LLVM_PREFIX", format!("/usr/lib/llvm-{major}"));
        install.args(["--no-default-features", "--features", &format!("llvm-{major}")]);
    }
    say(format!("installing bpf-linker {BPF_LINKER} (a few minutes)"));
    run(&mut install).context("bpf-linker is missing; its own instructions for installing it may help")
}

/// Installs Debian packages, with fresh package lists if the ones there do not do.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get update && apt-get install {}", packages.join(" "));
    if find_program("apt-get").is_none() {
        bail!("this is not a Debian-like system; install what these packages hold: {}", packages.join(" "));
    }
    if !is_root() {
        bail!("packages are missing and only root may install them: run `sudo sh -c '{by_hand}'`");
    }
    say(format!("installing packages: {}", packages.join(" ")));
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages);
        apt.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        apt
    };
    let first = install().stdin(Stdio::null()).stderr(Stdio::null()).status();
    if first.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    say("the package lists do not know them, or are too old: updating the lists");
    // A third-party source that does not answer must not keep us from Debian's.
    if let Err(error) = run(Command::new("apt-get").args(["update", "--quiet"]).stdout(Stdio::null())) {
        say(format!("{error}; trying with what there is"));
    }
    run(&mut install()).with_context(|| format!("cannot install packages; by hand: `{by_hand}`"))
}

/// Output of a program that may be missing or fail.
fn quiet(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    String::from_utf8(output.stdout).inspect_err(|_| say(format!("{} writes no text", line(command)))).ok()
}
