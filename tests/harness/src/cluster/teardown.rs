//! Taking clusters down: our own, and those of runs that crashed.

use std::{collections::BTreeSet, fs, path::Path, process};

use anyhow::{Context, Result};

use super::{
    cgroup::{BPFFS, cgroup2_mount, remove_group, remove_pins},
    netns::Netns,
};

/// Clusters that belong to a process: `proxy-test-<process id>-<number>`.
const PREFIX: &str = "proxy-test-";

pub(super) fn own_name(number: usize) -> String {
    format!("{PREFIX}{}-{number}", process::id())
}

/// Removes a cluster by name: its processes, pins, namespaces and control groups. Missing parts are not errors.
pub fn remove(name: &str) -> Result<()> {
    remove_group(&cgroup2_mount()?.join(name))?;
    // Programs stay attached as long as their links are pinned.
    remove_pins(&Path::new(BPFFS).join(name))?;
    let own = format!("{name}-");
    for netns in Netns::list()?.iter().filter(|netns| netns.starts_with(&own)) {
        Netns::remove(netns)?;
    }
    Ok(())
}

/// Removes the clusters of processes that are no more.
pub fn remove_stale() -> Result<()> {
    let mut names: Vec<String> = Netns::list()?;
    for dir in [cgroup2_mount()?.as_path(), Path::new(BPFFS)] {
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    let stale: BTreeSet<_> = names.iter().filter_map(|name| cluster_of_the_dead(name)).collect();
    stale.iter().try_for_each(|cluster| remove(cluster))
}

/// The cluster a name belongs to, if its process has ended.
fn cluster_of_the_dead(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let owner: u32 = parts.next()?.parse().ok()?;
    let number: usize = parts.next()?.parse().ok()?;
    let dead = !Path::new(&format!("/proc/{owner}")).exists();
    dead.then(|| format!("{PREFIX}{owner}-{number}"))
}
