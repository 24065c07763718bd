//! Kernels from Debian's packages, by the machine's own apt with a private configuration: nothing is installed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    setup::apt_install,
    workspace::{output, run, say},
};

/// The kernels to test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kernel {
    /// The oldest we support.
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    /// The newest that is packaged.
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// Whether it is the oldest or the newest. A feature of both is a feature of all between.
    pub(super) fn is_at_an_end(self) -> bool {
        matches!(self, Self::V5_10 | Self::Newest)
    }

    /// Whether it is the newest.
    pub(super) fn is_newest(self) -> bool {
        self == Self::Newest
    }

    /// Whether its machine tries the networks of `docs/networks.md`. That takes minutes: an old one and the newest do.
    pub(super) fn runs_networks(self) -> bool {
        matches!(self, Self::V6_1 | Self::Newest)
    }

    /// The Debian suite that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "trixie-backports",
        }
    }
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Depends on the current kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
pub(super) struct KernelFiles {
    /// As `uname -r` prints it.
    pub(super) release: String,
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The directory of its modules, with `modules.dep`.
    pub(super) modules: PathBuf,
}

/// Downloads and unpacks a kernel, unless that was done before.
pub(super) fn fetch(kernel: Kernel, cache: &Path, mirror: Option<&str>) -> Result<KernelFiles> {
    let dir = cache.join(kernel.suite());
    let unpacked = dir.join("unpacked");
    if !unpacked.is_dir() {
        say(format!("fetching kernel {} from Debian {}", kernel.name(), kernel.suite()));
        let packages = download(kernel.suite(), &dir, mirror)?;
        // Renamed when complete, so that an interrupted run does not look like a whole kernel.
        let partial = dir.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        for package in packages {
            run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&partial))?;
            fs::remove_file(package)?;
        }
        find(&partial)?;
        fs::rename(&partial, &unpacked)?;
    }
    find(&unpacked)
}

fn find(unpacked: &Path) -> Result<KernelFiles> {
    let mut found = Vec::new();
    for lib in
        ["lib/modules", "usr/lib/modules"].map(|lib| unpacked.join(lib)).iter().filter(|lib| lib.is_dir())
    {
        for release in fs::read_dir(lib)? {
            found.push(release?.path());
        }
    }
    let modules =
        found.into_iter().find(|dir| dir.join("kernel").is_dir()).context("the packages hold no modules")?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Newer packages have the image beside the modules.
    let images = [unpacked.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let image =
        images.into_iter().find(|image| image.is_file()).context("the packages hold no kernel image")?;
    Ok(KernelFiles { release, image, modules })
}

/// Downloads the packages of the suite's cloud kernel into `dir`.
fn download(suite: &str, dir: &Path, mirror: Option<&str>) -> Result<Vec<PathBuf>> {
    if !Path::new(KEYRING).exists() {
        apt_install(&["debian-archive-keyring"])?;
    }
    let mirror = mirror.map_or_else(debian_mirror, |mirror| Ok(mirror.to_owned()))?;
    for sub in ["lists/partial", "cache/archives/partial", "packages"] {
        fs::create_dir_all(dir.join(sub))?;
    }
    fs::write(
        dir.join("sources.list"),
        format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"),
    )?;
    let apt = |program: &str| {
        let mut command = Command::new(program);
        for (option, value) in [
            ("Dir::Etc::SourceList", dir.join("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", dir.join("lists")),
            ("Dir::State::Status", "/dev/null".into()),
            ("Dir::Cache", dir.join("cache")),
        ] {
            command.arg("-o").arg(format!("{option}={}", value.display()));
        }
        command.args(["-o", "APT::Architecture=amd64", "-o", "Acquire::Languages=none"]);
        command.args(["-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        // apt's own user cannot enter a home directory.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]);
        command
    };
    run(apt("apt-get").args(["update", "--quiet"]).stdout(Stdio::null()))?;

    // Newer packages are split: the image is in one, its modules in another.
    let mut wanted = BTreeSet::new();
    let mut open = vec![META_PACKAGE.to_owned()];
    while let Some(package) = open.pop() {
        let record = output(apt("apt-cache").args(["show", "--no-all-versions", &package]))?;
        for name in kernel_packages(&record) {
            if wanted.insert(name.to_owned()) {
                open.push(name.to_owned());
            }
        }
    }
    if wanted.is_empty() {
        bail!("{META_PACKAGE} of {suite} names no kernel");
    }
    let packages = dir.join("packages");
    run(apt("apt-get")
        .args(["download", "--quiet"])
        .args(&wanted)
        .current_dir(&packages)
        .stdout(Stdio::null()))?;
    let files = fs::read_dir(packages)?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    Ok(files)
}

/// The packages with parts of a kernel that a package's record names as dependencies.
fn kernel_packages(record: &str) -> impl Iterator<Item = &str> {
    let depends = record.lines().filter_map(|line| line.strip_prefix("Depends: "));
    let names =
        depends.flat_map(|list| list.split([',', '|'])).filter_map(|item| item.split_whitespace().next());
    names.filter(|name| {
        let part =
            ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|prefix| name.starts_with(prefix));
        part && name.contains("cloud")
    })
}

/// The mirror this machine gets Debian's packages from.
fn debian_mirror() -> Result<String> {
    let format = "$(REPO_URI) $(ORIGIN) $(LABEL)";
    let targets =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let debian = targets.lines().find_map(|line| line.strip_suffix(" Debian Debian"));
    debian.map(|uri| uri.trim_end_matches('/').to_owned()).context(
        "this machine has no Debian package source to take kernels from: \
         give one with --mirror, or run `apt-get update` if there is one",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_packages_that_hold_a_kernel() {
        let record = "Package: linux-image-9.9-cloud-amd64\n\
            Depends: kmod, linux-base-9.9-cloud-amd64 (= 9.9), linux-binary-9.9-cloud-amd64 (= 9.9), \
            linux-modules-9.9-cloud-amd64 (= 9.9)\nRecommends: firmware\n";
        let names: Vec<_> = kernel_packages(record).collect();
        assert_eq!(names, ["linux-binary-9.9-cloud-amd64", "linux-modules-9.9-cloud-amd64"]);
    }
}
