//! Control groups and the BPF file system: where they are, and how they are taken away again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::wait::until;

/// Where BPF objects are pinned.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";

/// Mount point of the first cgroup v2 hierarchy.
pub(crate) fn cgroup2_mount() -> Result<PathBuf> {
    mount_points("cgroup2")?.into_iter().next().context("no cgroup v2 hierarchy is mounted")
}

/// Mounts the BPF file system unless it is mounted.
pub(crate) fn ensure_bpffs() -> Result<()> {
    if mount_points("bpf")?.iter().any(|at| at == Path::new(BPFFS)) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount the BPF file system on {BPFFS}"))
}

fn mount_points(kind: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(fields.filter(|field| field.get(2) == Some(&kind)).map(|field| PathBuf::from(field[1])).collect())
}

/// Ends every process in the group and below, and removes the groups. A missing group is fine.
pub(crate) fn remove_group(group: &Path) -> Result<()> {
    if !group.exists() {
        return Ok(());
    }
    let kill = group.join("cgroup.kill");
    if kill.exists() {
        fs::write(&kill, "1").with_context(|| kill.display().to_string())?;
    } else {
        // Below 5.14, one by one.
        end_processes(group)?;
    }
    // A group can be removed once its processes have ended: on a busy machine it takes seconds until the kernel has let go of an agent's maps.
    until(Duration::from_secs(60), &format!("{} to be empty", group.display()), || {
        Ok(remove_tree(group).is_ok().then_some(()))
    })
}

/// Ends every process in the group and below.
fn end_processes(group: &Path) -> Result<()> {
    for line in fs::read_to_string(group.join("cgroup.procs"))?.lines() {
        match kill(Pid::from_raw(line.parse()?), Signal::SIGKILL) {
            // It was quicker.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).context("cannot end a process"),
        }
    }
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            end_processes(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a tree of directories whose files belong to the kernel.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Removes a directory of pins, with its pins. A missing one is fine.
pub(crate) fn remove_pins(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => Ok(()),
    }
}
