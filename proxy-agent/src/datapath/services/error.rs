//! Why a service port is not in the maps as it was planned.

use std::{fmt::Display, io, net::IpAddr};

use crate::datapath::room::Part;

/// A result of what is written for service ports.
pub type Result<T, E = WriteError> = std::result::Result<T, E>;

/// An entry that was not written, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}{cause}")]
pub struct WriteError {
    /// The operations that failed, the outermost first.
    what: String,
    /// Why it failed.
    pub cause: Cause,
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// A map has no room for an entry; a larger map may have it.
    #[error("no room for another {}", .0.one())]
    Full(Part),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] io::Error),
    /// An address is in a place for the other family's.
    #[error("{0} is of the other family")]
    OtherFamily(IpAddr),
    /// A service port has no id.
    #[error("a service port without id")]
    NoId,
}

impl WriteError {
    /// The error of a write to the map whose capacity is that of `part`: [`Cause::Full`] if the map is full.
    pub(super) fn of_write(error: io::Error, part: Part) -> Self {
        // Hash maps return E2BIG, tries ENOSPC.
        let is_full = matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC));
        if is_full { Cause::Full(part).into() } else { Cause::Kernel(error).into() }
    }

    /// Adds the operation that failed by it.
    pub(super) fn during(self, what: impl Display) -> Self {
        Self { what: format!("{what}: {}", self.what), cause: self.cause }
    }

    /// The part whose map is full, if that is the cause.
    pub fn full(&self) -> Option<Part> {
        if let Cause::Full(part) = self.cause { Some(part) } else { None }
    }
}

impl From<Cause> for WriteError {
    fn from(cause: Cause) -> Self {
        Self { what: String::new(), cause }
    }
}
