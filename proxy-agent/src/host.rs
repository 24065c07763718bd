//! Kernel settings below `/proc/sys` and `/sys`, which containers without all privileges see read-only.

use std::{fs, io};

/// The root of the host's first process. In a container that shows the host's processes, and with `CAP_SYS_PTRACE`, this leads to the host's
/// own mounts.
const ROOT: &str = "/proc/1/root";

/// Writes a setting, by the host's mount if this one is read-only. `net.*` settings are those of this thread's network namespace in either
/// case (`net_ctl_header_lookup`).
///
/// # Errors
/// When the setting cannot be written here, and not through the host either.
pub(crate) fn write(path: &str, value: &str) -> io::Result<()> {
    let Err(error) = fs::write(path, value) else { return Ok(()) };
    if error.kind() != io::ErrorKind::ReadOnlyFilesystem {
        return Err(error);
    }
    // The first error says more: the second one is about a path that nobody chose.
    fs::write(format!("{ROOT}{path}"), value).map_err(|_| error)
}
