//! Looks at connected sockets in all network namespaces.

use std::{io, ops::ControlFlow};

use tracing::debug;

use crate::net::{
    netns,
    sock_diag::{SockDiag, SockDiagError},
};

/// How a walk went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Network namespaces walked through.
    pub namespaces: usize,
    /// How often a network namespace could not be entered, or its sockets not be listed or ended.
    pub failed: usize,
    /// This kernel cannot do it at all.
    pub unsupported: bool,
}

/// Does `work` in each network namespace. One that fails is counted, and the others are still walked through. For use
/// where blocking is allowed.
///
/// # Errors
/// When no thread can be made.
pub fn walk(mut work: impl FnMut(&SockDiag) -> Result<(), SockDiagError> + Send) -> io::Result<Walked> {
    let mut walked = Walked::default();
    let walk = netns::walk(|| match SockDiag::open().and_then(|sock_diag| work(&sock_diag)) {
        Err(SockDiagError::Unsupported) => {
            walked.unsupported = true;
            ControlFlow::Break(())
        }
        Err(error) => {
            debug!("sockets of a network namespace cannot be looked at: {error}");
            walked.failed += 1;
            ControlFlow::Continue(())
        }
        Ok(()) => ControlFlow::Continue(()),
    })?;
    walked.namespaces = walk.entered;
    walked.failed += walk.failed;
    Ok(walked)
}
