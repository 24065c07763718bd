//! The programs' log records, in the agent's own log.
#![expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

use super::object::Object;

/// One of the programs that log: all use the same ring buffer.
const ANY: &str = "connect4";

/// Prints records as they come, as long as the runtime lives.
pub(super) fn follow(object: &mut Object) -> Result<()> {
    object.program(ANY)?;
    let id = object.program_id(ANY).context("cannot identify a program that was loaded")?;
    let logger = EbpfLogger::init_from_id(id).context("cannot read the kernel log")?;
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
