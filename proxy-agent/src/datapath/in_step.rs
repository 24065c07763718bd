//! Were the pinned maps ever in step with a source?
//!
//! An agent that starts while the API server is away has only what is pinned. A reboot leaves nothing, and an agent that died in its
//! first second half of it: nobody may rely on that. So the first agent that was in step leaves a mark beside the maps. Who comes after it
//! keeps them in step or leaves them alone.

use std::{io, os::unix::fs::symlink};

use super::pins::Pins;

/// A link to nowhere: a bpf file system keeps no files, and names of pins may not have dots.
const MARK: &str = "in-step";

/// Says that the maps are in step.
///
/// # Errors
/// When the bpf file system refuses.
pub(crate) fn mark(pins: &Pins) -> io::Result<()> {
    match symlink("maps", pins.map(MARK)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Was that said of these maps?
pub(crate) fn is_marked(pins: &Pins) -> bool {
    pins.map(MARK).symlink_metadata().is_ok()
}
