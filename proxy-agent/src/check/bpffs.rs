//! The bpf file system below `--bpffs`.

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::finding::Finding;

const NAME: &str = "bpffs";

/// Where the agent mounts one by itself.
const USUAL: &str = "/sys/fs/bpf";

/// State of the directory.
#[derive(Debug)]
pub(super) struct Facts {
    /// `--bpffs`.
    path: PathBuf,
    /// Whether it, or its nearest ancestor that exists, is on a bpf file system.
    is_bpffs: io::Result<bool>,
    /// The agent can mount a bpf file system here: an empty directory.
    is_mountable: bool,
}

pub(super) fn gather(path: &Path) -> Facts {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let is_bpffs = statfs(existing).map(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    let is_empty = std::fs::read_dir(USUAL).is_ok_and(|mut entries| entries.next().is_none());
    Facts {
        path: path.to_owned(),
        is_bpffs: is_bpffs.map_err(Into::into),
        is_mountable: path.starts_with(USUAL) && is_empty,
    }
}

pub(super) fn assess(facts: &Facts) -> Finding {
    let shown = facts.path.display();
    match &facts.is_bpffs {
        Err(error) => Finding::unknown(NAME, format!("cannot look at {shown}: {error}")),
        Ok(true) => Finding::pass(NAME, format!("{shown}")),
        Ok(false) if facts.is_mountable => Finding::warn(
            NAME,
            format!("none at {USUAL}; the agent mounts one there"),
            format!(
                "mount it on the node, `mount -t bpf bpf {USUAL}`: one that is mounted in a container without `mountPropagation: \
                 Bidirectional` goes with the container, and services with it"
            ),
        ),
        Ok(false) => Finding::fail(
            NAME,
            format!("{shown} is not on a bpf file system"),
            format!("`mount -t bpf bpf {USUAL}`, or name a directory on one with --bpffs"),
        )
        .that_ends_the_agent(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    #[test]
    fn directories() {
        for (is_bpffs, is_mountable, expected) in [
            (Ok(true), false, State::Pass),
            (Ok(false), true, State::Warn),
            (Ok(false), false, State::Fail),
            (Err(io::ErrorKind::PermissionDenied.into()), false, State::Unknown),
        ] {
            let facts = Facts { path: "/sys/fs/bpf/x".into(), is_bpffs, is_mountable };
            assert_eq!(assess(&facts).state, expected, "{facts:?}");
        }
    }

    #[test]
    fn a_temporary_directory_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(assess(&gather(&directory.path().join("not/there"))).state, State::Fail);
    }
}
