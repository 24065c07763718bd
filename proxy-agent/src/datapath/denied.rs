//! Explains why the kernel refused the maps.

use anyhow::Error;
use aya::{BtfError, EbpfError};

use super::{
    locked_memory::{self, LockedMemory},
    map_types::os_error,
};

/// Explains what a failed load means for the user.
pub(super) fn explain_load(error: EbpfError) -> Error {
    let reason = match &error {
        EbpfError::MapError(error) => os_error(error),
        EbpfError::BtfError(BtfError::LoadError { io_error, .. }) => Some(io_error),
        _ => None,
    };
    let is_denied =
        reason.is_some_and(|error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)));
    let error = Error::from(error).context("cannot load the kernel programs' maps");
    if !is_denied {
        return error;
    }
    let limit = match locked_memory::raise() {
        LockedMemory::Limited(limit) => format!(
            "; before Linux 5.11 maps also count for RLIMIT_MEMLOCK, which is {limit} bytes: it must be unlimited, which takes \
             CAP_SYS_RESOURCE"
        ),
        LockedMemory::NotCounted | LockedMemory::Unlimited => String::new(),
    };
    error.context(format!(
        "no permission to use BPF: run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN (in Kubernetes: the \
         securityContext of deploy/base/daemonset.yaml){limit}"
    ))
}
