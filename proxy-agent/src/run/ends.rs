//! Reasons for the agent's end.

use anyhow::Result;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Why the loop of the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was asked to stop.
    Stopped,
    /// Another agent requests its place.
    HandOver,
}

/// Cancels on a signal.
pub(super) fn stop_on_signal(cancel: CancellationToken) -> Result<JoinHandle<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!("{name}: stopping");
        cancel.cancel();
    }))
}
