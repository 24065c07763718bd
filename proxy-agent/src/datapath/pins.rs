//! Where maps and links are pinned, and what the directories contain.

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
use proxy_common::layout::group::Group;
use tracing::info;

use super::synced;

/// The directory by which a waiting agent requests its turn.
pub(crate) const SUCCESSOR: &str = "successor";

/// The prefix of all directories of maps, in every release.
const MAPS: &str = "maps-";

/// The directory of larger maps that will replace smaller ones.
const LARGER: &str = "maps-larger";

/// Groups of maps, separated by commas, for which a debug build plays a release with other layouts.
const OTHER_LAYOUTS: &str = "PROXY_AGENT_OTHER_LAYOUTS";

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
            if self.growing.contains(name) { self.larger() } else { self.directory(Group::of(name)) };
        directory.join(name)
    }

    /// Where the maps of a group are pinned.
    fn directory(&self, group: Group) -> PathBuf {
        self.root.join(directory_name(group))
    }

    /// The layouts that this release uses: names of directories.
    pub(super) fn layouts() -> String {
        Group::ALL.map(directory_name).join(" ")
    }

    /// Where larger maps are pinned until they take the place of the smaller ones.
    fn larger(&self) -> PathBuf {
        self.root.join(LARGER)
    }

    /// Makes the directory for larger maps, without the remains of an agent that was killed.
    ///
    /// # Errors
    /// When the bpf file system refuses.
    pub(super) fn make_room_for_larger(&self) -> Result<()> {
        self.remove_larger()?;
        std::fs::create_dir_all(self.larger())
            .with_context(|| format!("cannot make the directory {}", self.larger().display()))
    }

    /// Removes the directory for larger maps, and its contents.
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
        // Empty now. The next agent removes a remainder.
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
        for directory in self.own_directories() {
            std::fs::create_dir_all(&directory)
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        }
        Ok(())
    }

    /// The directories that this release makes.
    pub(crate) fn own_directories(&self) -> Vec<PathBuf> {
        let maps = Group::ALL.map(|group| self.directory(group));
        [self.links()].into_iter().chain(maps).collect()
    }

    /// Whether the directories exist.
    pub(crate) fn are_there(&self) -> bool {
        self.own_directories().iter().all(|directory| directory.is_dir())
    }

    /// Names of the pinned links.
    pub fn link_names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.links()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Removes the pins of maps that this release does not use; programs that use the maps keep them. Without that, a downgrade would find
    /// old flows and services. Returns how many pins there were.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove_other_layouts(&self) -> Result<usize> {
        let own = self.own_directories();
        let is_other = |directory: &PathBuf| {
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(MAPS) && *name != *LARGER && !own.contains(directory)
        };
        let others: Vec<PathBuf> = self.directories()?.into_iter().filter(is_other).collect();
        // An agent that is killed in between must not leave a part of them with a mark.
        for directory in &others {
            synced::remove_mark(directory).with_context(|| directory.display().to_string())?;
        }
        let mut removed = 0;
        for directory in others {
            removed += remove_directory(&directory)?;
        }
        Ok(removed)
    }

    /// Removes the pins of this release's maps of services, so that others are made.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub(super) fn remove_services(&self) -> Result<()> {
        remove_directory(&self.directory(Group::Services)).map(drop)
    }

    /// The directories of pins that there are, links first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub(super) fn directories(&self) -> Result<Vec<PathBuf>> {
        let is_ours = |name: &str| name == "links" || name.starts_with(MAPS) || name == SUCCESSOR;
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

/// The name of the directory of a group of maps.
fn directory_name(group: Group) -> String {
    let name = group.directory();
    let is_other =
        |others: String| others.split(',').any(|other| name.starts_with(&format!("{MAPS}{other}-")));
    if cfg!(debug_assertions) && std::env::var(OTHER_LAYOUTS).is_ok_and(is_other) {
        return format!("{name}-other");
    }
    name.to_owned()
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
        .with_context(|| format!("no bpf file system is mounted at {BPFFS}, and mounting one failed"))?;
    info!("mounted a bpf file system at {BPFFS}");
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
        let own = ["backend_sets", "service_names", "flows_v4", "connected_v6"].map(|name| pins.map(name));
        let others = ["maps-v8/b", "maps-v8/c", "maps-flows-1-999/b"].map(|name| root.path().join(name));
        let rest = ["links/a", "maps-larger/b", "other/b"].map(|name| root.path().join(name));
        for path in own.iter().chain(&others).chain(&rest) {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        assert!(pins.are_there());
        assert_eq!(pins.remove_other_layouts().unwrap(), 3);
        assert!(own.iter().chain(&rest).all(|path| path.exists()));
        assert!(others.iter().all(|path| !path.parent().unwrap().exists()));
        assert_eq!(pins.remove_other_layouts().unwrap(), 0);
        pins.remove_services().unwrap();
        assert!(!own[0].exists() && own[1..].iter().all(|path| path.exists()));
    }
}
