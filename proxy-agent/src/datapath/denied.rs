//! Explains why the kernel refused the maps.

use std::io;

use anyhow::Error;
use aya::EbpfError;

use super::locked_memory::{self, LockedMemory};

/// Explains what a failed load means for the user.
pub(super) fn explain_load(error: EbpfError) -> Error {
    let error = Error::from(error).context("cannot load the kernel programs' maps");
    let is_denied = error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)))
    });
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
