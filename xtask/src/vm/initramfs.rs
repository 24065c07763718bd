//! The root file system of a machine: a cpio archive, which the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use cpio::{NewcBuilder, write_cpio};

use super::kernel::KernelFiles;
use crate::{
    build::Executables,
    workspace::{find_program, target_dir},
};

/// Modules to load, where the kernel does not have them built in: for hooks, devices, netfilter rules, sockets.
const MODULES: &[&str] = &[
    "sch_ingress",
    "cls_bpf",
    "veth",
    "bridge",
    "br_netfilter",
    "8021q",
    "bonding",
    "ipip",
    "vxlan",
    "macvlan",
    "nf_tables",
    "nft_chain_nat",
    "nft_counter",
    "nft_ct",
    "nft_masq",
    "nft_redir",
    "udp_diag",
    "tcp_diag",
];

/// The same for the networks of `tests/tests/traffic/networks.rs`, in the machines that run it.
const NETWORK_MODULES: &[&str] = &[
    "sit",
    "ip_gre",
    "ip6_tunnel",
    "ip6_gre",
    "geneve",
    "wireguard",
    "ipvlan",
    "vrf",
    "dummy",
    "sch_netem",
    "sctp",
    "openvswitch",
    "xfrm_user",
    "esp4",
    "esp6",
    // The parts of `rfc4106(gcm(aes))`: nothing in the machine loads modules on demand.
    "ctr",
    "gcm",
    "ghash-generic",
    "seqiv",
    "echainiv",
    // Random numbers for the initial vectors.
    "jitterentropy_rng",
    "sha512_generic",
    "drbg",
];

/// Programs of this machine that the init and the tests run.
const HOST_PROGRAMS: &[&str] =
    &["ip", "bridge", "tc", "ethtool", "nft", "wg", "ipvsadm", "setpriv", "prlimit"];

/// For `tests/tests/traffic/migrate_ipvs.rs`.
const IPVS_MODULES: &[&str] = &["ip_vs", "ip_vs_rr", "dummy"];

/// Further modules of a suite.
fn modules_of(suite: &str) -> &'static [&'static str] {
    match suite {
        "networks" => NETWORK_MODULES,
        "migrate_ipvs" => IPVS_MODULES,
        _ => &[],
    }
}

const DIRECTORIES: &[&str] =
    &["dev", "etc", "manifests", "modules", "proc", "run", "sys", "tests", "tmp", "var", "var/run"];

/// The files of every machine, besides its kernel's modules.
pub(super) struct Guest {
    /// Programs of ours, by their place in the machine.
    programs: BTreeMap<String, PathBuf>,
    /// The programs for the kernel, for tests that load them themselves.
    object: PathBuf,
}

impl Guest {
    /// Finds the required files among the built ones; `agent` replaces the built agent.
    pub(super) fn new(built: &Executables, agent: Option<&Path>, cache: &Path) -> Result<Self> {
        let find = |name: &str| built.get(name).with_context(|| format!("cargo has built no `{name}`"));
        let agent = agent.map_or_else(|| find("proxy-agent").map(PathBuf::as_path), Ok)?;
        let mut programs = BTreeMap::new();
        for (place, program) in
            [("init", find("vm_init")?.as_path()), ("proxy-agent", agent), ("peer", find("peer")?)]
        {
            programs.insert(place.to_owned(), stripped(program, &cache.join("stripped"), place)?);
        }
        for (name, program) in built.iter().filter(|(name, _)| TEST_PROGRAMS.contains(&name.as_str())) {
            programs.insert(format!("tests/{name}"), stripped(program, &cache.join("stripped"), name)?);
        }
        Ok(Self { programs, object: target_dir().join("bpf/proxy-agent.bpf.o") })
    }
}

/// The programs of tests that machines get.
pub(super) const TEST_PROGRAMS: [&str; 2] = ["packets", "traffic"];

/// A program without the parts that only debuggers read: they are most of it, and the machine is small.
fn stripped(program: &Path, dir: &Path, name: &str) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let file = dir.join(name);
    let strip = Command::new("strip").arg("--strip-debug").arg("-o").arg(&file).arg(program).output();
    // Without binutils, the whole will do.
    Ok(if strip.is_ok_and(|output| output.status.success()) { file } else { program.to_owned() })
}

/// The program of tests that has a suite, if one has: `tests/vm_init/src/suite.rs` runs it.
fn test_program(suite: &str) -> Option<&'static str> {
    match suite {
        // The init's own.
        "node" => None,
        "packets" | "verifier" => Some("tests/packets"),
        _ => Some("tests/traffic"),
    }
}

/// Writes the archive, with those programs of tests that the suites need: the machine unpacks it into its memory.
pub(super) fn write(archive: &Path, kernel: &KernelFiles, guest: &Guest, suites: &[&str]) -> Result<()> {
    let mut files = BTreeMap::new();
    let needed: BTreeSet<_> = suites.iter().filter_map(|suite| test_program(suite)).collect();
    let is_needed = |name: &str| !name.starts_with("tests/") || needed.contains(name);
    for (name, program) in guest.programs.iter().filter(|(name, _)| is_needed(name)) {
        add_program(&mut files, name.into(), program)?;
    }
    files.insert("bpf/proxy-agent.bpf.o".into(), read(&guest.object)?);
    let further: Vec<&str> = suites.iter().flat_map(|suite| modules_of(suite)).copied().collect();
    for (number, module) in load_order(&kernel.modules, &further)?.iter().enumerate() {
        let name = module.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".ko");
        // The init loads them by the order of their names.
        files.insert(format!("modules/{number:03}-{name}.ko").into(), decompressed(module)?);
    }
    for name in HOST_PROGRAMS {
        let program = find_program(name).with_context(|| format!("program `{name}` does not exist"))?;
        add_program(&mut files, Path::new("bin").join(name), &program)?;
    }

    let mut directories: BTreeSet<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
    directories.extend(files.keys().flat_map(|path| path.ancestors().skip(1).map(Path::to_owned)));
    directories.remove(Path::new(""));
    // Ordered by name, so parents come first.
    let directories = directories.iter().map(|path| (path, 0o040_755, &[][..]));
    let files = files.iter().map(|(path, content)| (path, 0o100_755, &content[..]));
    let entry = |(path, mode, content): (&PathBuf, u32, _)| {
        let name = path.to_str().context("a path is not UTF-8")?;
        Ok((NewcBuilder::new(name).mode(mode), Cursor::new(content)))
    };
    let entries = directories.chain(files).map(entry).collect::<Result<Vec<_>>>()?;
    let cpio = write_cpio(entries.into_iter(), Vec::new())?;
    fs::write(archive, cpio).with_context(|| format!("cannot write {}", archive.display()))
}

/// Adds a program and the libraries it needs.
fn add_program(files: &mut BTreeMap<PathBuf, Vec<u8>>, name: PathBuf, program: &Path) -> Result<()> {
    for library in libraries(program)? {
        files.insert(library.strip_prefix("/")?.to_owned(), read(&library)?);
    }
    files.insert(name, read(program)?);
    Ok(())
}

/// The module files to load, dependencies first.
fn load_order(modules: &Path, further: &[&str]) -> Result<Vec<PathBuf>> {
    let dependencies = modules.join("modules.dep");
    let mut order = Vec::new();
    if !dependencies.exists() {
        // Made when a kernel is installed; packages from Debian 13 on come without.
        let dir = modules.ancestors().nth(3).context("modules are not below lib/modules")?;
        let release = modules.file_name().context("modules have no release")?;
        let depmod = find_program("depmod").unwrap_or_else(|| "depmod".into());
        let output = Command::new(depmod)
            .arg("--basedir")
            .arg(dir)
            .arg(release)
            .output()
            .context("cannot run depmod")?;
        // It warns about lists that are missing in these packages, and that we do not need.
        if !output.status.success() {
            bail!("depmod failed: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let text = fs::read_to_string(&dependencies).with_context(|| format!("no {}", dependencies.display()))?;
    let lines: BTreeMap<&str, Vec<&str>> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(module, needs)| (module, needs.split_whitespace().collect()))
        .collect();
    for name in MODULES.iter().chain(further) {
        let is_wanted =
            |path: &&&str| path.rsplit('/').next().and_then(|file| file.split('.').next()) == Some(*name);
        // No such module: built in, or the init will show what is missing.
        let Some(module) = lines.keys().find(is_wanted) else { continue };
        // modules.dep names the direct and indirect needs, the deepest last.
        for path in lines[module].iter().rev().chain([module]) {
            let path = modules.join(path);
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    Ok(order)
}

fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return read(module),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", module.display()),
    };
    let output = Command::new(program)
        .args(["-dc"])
        .arg(module)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("cannot decompress {}: {}", module.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// The shared libraries of a program, its loader included; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
