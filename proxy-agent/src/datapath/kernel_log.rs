//! The programs' log records, in the agent's own log.
#![expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

/// Prints records as they come, as long as the runtime lives.
pub(super) fn follow(ebpf: &mut Ebpf) -> Result<()> {
    let logger = EbpfLogger::init(ebpf).context("cannot read the kernel log")?;
    // SAFETY: the logger keeps its ring buffer, and so this descriptor, open and the same until it is dropped.
    let mut logger = unsafe { AsyncFd::register(logger) }.context("cannot wait for the kernel log")?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}
