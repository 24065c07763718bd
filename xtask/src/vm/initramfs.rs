//! The root file system of a machine: a cpio archive ("newc", Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{Guest, kernel::KernelFiles};
use crate::workspace::find_program;

/// Modules to load, where the kernel does not have them built in.
const MODULES: &[&str] = &["veth", "sch_ingress", "cls_bpf"];

/// Programs of this machine that the init runs.
const HOST_PROGRAMS: &[&str] = &["ip", "ethtool"];

const DIRECTORIES: &[&str] =
    &["dev", "etc", "manifests", "modules", "proc", "run", "sys", "tmp", "var", "var/run"];

/// Writes the archive.
pub(super) fn write(archive: &Path, kernel: &KernelFiles, guest: &Guest<'_>) -> Result<()> {
    let mut files = BTreeMap::new();
    for (name, program) in [("init", guest.init), ("proxy-agent", guest.agent), ("verifier", guest.verifier)]
    {
        add_program(&mut files, name.into(), program)?;
    }
    for (number, module) in load_order(&kernel.modules)?.iter().enumerate() {
        let name = module.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.trim_end_matches(".ko");
        // The init loads them by the order of their names.
        files.insert(format!("modules/{number:02}-{name}.ko").into(), decompressed(module)?);
    }
    for name in HOST_PROGRAMS {
        let program = find_program(name).with_context(|| format!("there is no program `{name}`"))?;
        add_program(&mut files, Path::new("bin").join(name), &program)?;
    }

    let mut directories: BTreeSet<PathBuf> = DIRECTORIES.iter().map(PathBuf::from).collect();
    directories.extend(files.keys().flat_map(|path| path.ancestors().skip(1).map(Path::to_owned)));
    directories.remove(Path::new(""));
    let mut cpio = Vec::new();
    // Ordered by name, so parents come first.
    for directory in &directories {
        entry(&mut cpio, directory, 0o040_755, &[])?;
    }
    for (path, content) in &files {
        entry(&mut cpio, path, 0o100_755, content)?;
    }
    entry(&mut cpio, Path::new("TRAILER!!!"), 0, &[])?;
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

fn entry(cpio: &mut Vec<u8>, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let name = path.to_str().context("a path is not UTF-8")?;
    let inode = cpio.len() as u32;
    let size = u32::try_from(content.len()).context("a file is too large for the archive")?;
    let links = 1;
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    cpio.extend_from_slice(b"070701");
    for field in fields {
        cpio.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    cpio.extend_from_slice(name.as_bytes());
    cpio.push(0);
    pad(cpio);
    cpio.extend_from_slice(content);
    pad(cpio);
    Ok(())
}

fn pad(cpio: &mut Vec<u8>) {
    cpio.resize(cpio.len().next_multiple_of(4), 0);
}

/// The module files to load, dependencies first.
fn load_order(modules: &Path) -> Result<Vec<PathBuf>> {
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
    for name in MODULES {
        let is_wanted =
            |path: &&&str| path.rsplit('/').next().and_then(|file| file.split('.').next()) == Some(*name);
        // Not there: built in, or the init will show what is missing.
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
