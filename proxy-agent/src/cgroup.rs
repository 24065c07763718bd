//! Where the cgroup v2 hierarchy is mounted.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The first mount of cgroup2.
pub fn find_root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    root_in(&mounts).context(
        "no cgroup v2 hierarchy is mounted, and socket hooks need one: mount it with `mount -t cgroup2 none /sys/fs/cgroup`, or \
         name it with --cgroup-root",
    )
}

fn root_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(root_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(root_in("proc /proc proc rw 0 0\n"), None);
    }
}
