//! Where maps and links are pinned, and what is found there.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use proxy_common::layout::ABI;
use tracing::info;

/// The directory by which an agent that waits asks for its turn.
pub(crate) const SUCCESSOR: &str = "successor";

/// The directory of maps that are to replace smaller ones.
const LARGER: &str = "maps-larger";

/// The directories of one agent on the bpf file system.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    /// Maps whose larger successors are meant.
    growing: BTreeSet<&'static str>,
}

impl Pins {
    /// Pins below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), growing: BTreeSet::new() }
    }

    /// The same pins, but those of larger maps in the place of these.
    pub(super) fn with_larger(&self, maps: impl IntoIterator<Item = &'static str>) -> Self {
        Self { root: self.root.clone(), growing: maps.into_iter().collect() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a map is pinned. Maps of another layout have another directory.
    pub fn map(&self, name: &str) -> PathBuf {
        let directory =
            if self.growing.contains(name) { self.larger() } else { self.root.join(format!("maps-v{ABI}")) };
        directory.join(name)
    }

    /// Where larger maps are pinned until they take the place of the smaller ones.
    fn larger(&self) -> PathBuf {
        self.root.join(LARGER)
    }

    /// Makes the directory for larger maps, without what an agent left there that was killed.
    ///
    /// # Errors
    /// When the bpf file system refuses.
    pub(super) fn make_room_for_larger(&self) -> Result<()> {
        self.remove_larger()?;
        std::fs::create_dir_all(self.larger())
            .with_context(|| format!("cannot make the directory {}", self.larger().display()))
    }

    /// Removes the directory for larger maps, with what is in it.
    ///
    /// # Errors
    /// When the bpf file system refuses.
    pub(super) fn remove_larger(&self) -> Result<()> {
        if self.larger().is_dir() {
            remove_directory(&self.larger())?;
        }
        Ok(())
    }

    /// Pins larger maps in the place of the smaller ones. Each pin changes at once; as long as both maps have the same contents, it does
    /// not matter which of them an agent finds that starts in between.
    ///
    /// # Errors
    /// When the bpf file system refuses; some may be replaced by then.
    pub(super) fn replace_by_larger(&self) -> Result<()> {
        let own = Self::new(&self.root);
        for name in &self.growing {
            std::fs::rename(self.map(name), own.map(name))
                .with_context(|| format!("cannot pin the larger map `{name}`"))?;
        }
        // Empty now. What is left is removed by the next agent.
        let _ = std::fs::remove_dir(self.larger());
        Ok(())
    }

    /// Where links are pinned.
    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// Makes the directories.
    pub(crate) fn create(&self) -> Result<()> {
        if self.root.starts_with(BPFFS) {
            mount_bpffs()?;
        }
        require_bpffs(&self.root)?;
        for directory in [self.links(), self.root.join(format!("maps-v{ABI}"))] {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        }
        Ok(())
    }

    /// Are the directories there?
    pub(crate) fn are_there(&self) -> bool {
        self.links().is_dir() && self.root.join(format!("maps-v{ABI}")).is_dir()
    }

    /// Names of the pinned links.
    pub fn link_names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.links()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Are programs attached that may use maps of another layout? What is in those of this one then is of long ago, if anything.
    pub(crate) fn has_other_layouts(&self) -> bool {
        let own = format!("maps-v{ABI}");
        let directories = self.directories().unwrap_or_default();
        let is_other = |directory: &PathBuf| {
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("maps-v") && *name != *own
        };
        directories.iter().any(is_other) && self.link_names().is_ok_and(|names| !names.is_empty())
    }

    /// Removes maps of other layouts, which programs of an earlier release used: they take memory, and a later downgrade would find
    /// flows and services of long ago in them. To be called when this release serves. Returns how many there were.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_other_layouts(&self) -> Result<usize> {
        let own = format!("maps-v{ABI}");
        let mut removed = 0;
        for entry in
            std::fs::read_dir(&self.root).with_context(|| format!("cannot read {}", self.root.display()))?
        {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("maps-v") && *name != *own {
                removed += remove_directory(&entry.path())?;
            }
        }
        Ok(removed)
    }

    /// The directories of pins that there are, links first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(super) fn directories(&self) -> Result<Vec<PathBuf>> {
        let is_ours =
            |name: &str| name == "links" || name.starts_with("maps-v") || [SUCCESSOR, LARGER].contains(&name);
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", self.root.display()))?,
        };
        let mut directories: Vec<PathBuf> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                is_ours(&entry.file_name().to_string_lossy()).then(|| entry.path())
            })
            .collect();
        directories.sort();
        Ok(directories)
    }

    /// Removes every pin; links first, so that no program is left without its maps. Returns how many there were.
    pub fn remove_all(&self) -> Result<usize> {
        let mut removed = 0;
        for directory in self.directories()? {
            removed += remove_directory(&directory)?;
        }
        // Ours only if nothing else is in it.
        let _ = std::fs::remove_dir(&self.root);
        Ok(removed)
    }
}

/// Removes a directory of pins; returns how many there were.
fn remove_directory(directory: &Path) -> Result<usize> {
    let mut removed = 0;
    for pin in std::fs::read_dir(directory)? {
        let pin = pin?.path();
        std::fs::remove_file(&pin).with_context(|| format!("cannot unpin {}", pin.display()))?;
        removed += 1;
    }
    std::fs::remove_dir(directory)?;
    Ok(removed)
}

/// Where the bpf file system belongs; systemd mounts it there.
const BPFFS: &str = "/sys/fs/bpf";

/// Mounts the bpf file system where it belongs, unless that was done.
fn mount_bpffs() -> Result<()> {
    // Something else's files are not ours to cover.
    let is_free = std::fs::read_dir(BPFFS).is_ok_and(|mut entries| entries.next().is_none());
    if !is_free || is_bpffs(Path::new(BPFFS))? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700"))
        .with_context(|| format!("there is no bpf file system at {BPFFS}, and none can be mounted"))?;
    info!("mounted a bpf file system at {BPFFS}: there was none");
    Ok(())
}

fn is_bpffs(path: &Path) -> Result<bool> {
    let stat = statfs(path).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Refuses a directory that is not on a bpf file system, saying how to mount one.
fn require_bpffs(root: &Path) -> Result<()> {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !is_bpffs(existing)? {
        bail!(
            "{} is not on a bpf file system: mount one with `mount -t bpf bpf /sys/fs/bpf`, or name a directory on one with \
             --bpffs",
            root.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_maps_of_this_layout_stay() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::new(root.path());
        for name in ["links/a", &format!("maps-v{ABI}/b"), "maps-v1/b", "maps-v1/c", "maps-v999/b", "other/b"]
        {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert!(pins.has_other_layouts());
        assert_eq!(pins.remove_other_layouts().unwrap(), 3);
        assert!(!pins.has_other_layouts());
        assert!(pins.map("b").exists() && pins.link("a").exists() && root.path().join("other/b").exists());
        assert!(!root.path().join("maps-v1").exists() && !root.path().join("maps-v999").exists());
        assert_eq!(pins.remove_other_layouts().unwrap(), 0);
    }
}
