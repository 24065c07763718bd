//! Kernel settings below `/proc/sys` and `/sys`, which containers without all privileges see read-only.

use std::{fs, io};

/// Where a container has the host's own mounts of those settings that the agent writes.
const HOST: &str = "/host";

/// Writes a setting, by the host's mount if this one is read-only. `net.*` settings are those of this thread's network namespace in either
/// case (`net_ctl_header_lookup`).
///
/// # Errors
/// When the setting can be written neither here nor below [`HOST`].
pub(crate) fn write(path: &str, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            // The first error is the useful one: the second is about a path that no user configured.
            fs::write(format!("{HOST}{path}"), value).map_err(|_| error)
        }
        result => result,
    }
}
