//! The mark of pinned maps that were synced with a source.
//!
//! An agent that starts while the API server is away has only what is pinned. A reboot leaves nothing, and an agent that died in its
//! first second leaves half of it: that must not count as complete. So the first agent that was synced leaves a mark beside the maps of
//! services, with the layouts of all groups. A later agent with the same layouts keeps the maps synced or leaves them alone; one with
//! other layouts removes the mark, or the directory, before it writes ids or attaches programs.

use std::{fs, io, os::unix::fs::symlink, path::Path};

use super::pins::Pins;

/// A link to nowhere: a bpf file system keeps no files, and names of pins may not have dots.
const MARK: &str = "in-step";

/// Marks the maps as synced.
///
/// # Errors
/// When the bpf file system refuses.
pub(crate) fn mark(pins: &Pins) -> io::Result<()> {
    if is_marked(pins) {
        return Ok(());
    }
    unmark(pins)?;
    symlink(Pins::layouts(), pins.map(MARK))
}

/// Takes the mark away.
///
/// # Errors
/// When the bpf file system refuses.
pub(super) fn unmark(pins: &Pins) -> io::Result<()> {
    pins.map(MARK).parent().map_or(Ok(()), remove_mark)
}

/// Takes the mark of any release from its directory.
///
/// # Errors
/// When the bpf file system refuses.
pub(super) fn remove_mark(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(MARK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether these maps were marked.
pub(crate) fn is_marked(pins: &Pins) -> bool {
    fs::read_link(pins.map(MARK)).is_ok_and(|layouts| layouts.as_os_str() == Pins::layouts().as_str())
}

/// Whether programs are attached whose maps are others, or were never synced. Then these must be filled before programs use them.
pub(crate) fn is_to_be_filled(pins: &Pins) -> bool {
    !is_marked(pins) && pins.link_names().is_ok_and(|names| !names.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_all_layouts() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::new(root.path());
        for directory in pins.own_directories() {
            fs::create_dir_all(directory).unwrap();
        }
        assert!(!is_marked(&pins) && !is_to_be_filled(&pins), "nothing is attached");
        fs::write(root.path().join("links/cgroup-connect4"), "").unwrap();
        assert!(is_to_be_filled(&pins));
        mark(&pins).unwrap();
        mark(&pins).unwrap();
        assert!(is_marked(&pins) && !is_to_be_filled(&pins));
        fs::remove_file(pins.map(MARK)).unwrap();
        symlink("maps-ids-2 maps-services-2-2 maps-flows-2-999", pins.map(MARK)).unwrap();
        assert!(!is_marked(&pins) && is_to_be_filled(&pins), "another release shares this directory");
        mark(&pins).unwrap();
        assert!(is_marked(&pins));
        unmark(&pins).unwrap();
        unmark(&pins).unwrap();
        assert!(!is_marked(&pins));
    }
}
