//! Explains why the kernel refused the maps.

use std::io;

use anyhow::Error;

use super::locked_memory::{self, LockedMemory};

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {request}")]
pub(super) struct Refused {
    /// In words that fit behind "cannot".
    pub(super) request: String,
    #[source]
    pub(super) error: io::Error,
}

impl Refused {
    /// For `map_err`.
    pub(super) fn request(request: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { request: request.into(), error }
    }
}

/// Explains what a failed load means for the user.
pub(super) fn explain_load(refused: Refused) -> Error {
    let is_denied = refused.error.kind() == io::ErrorKind::PermissionDenied;
    let error = Error::from(refused).context("cannot load the kernel programs' maps");
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
