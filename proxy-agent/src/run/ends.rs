//! What ends the agent: signals, and a configuration that changed.

use anyhow::{Result, anyhow};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{self, LoadedFile};

/// Why the agent has nothing more to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was told to stop.
    Stopped,
    /// Another agent asks for its place.
    HandOver,
}

/// Resolves when the configuration file changed, to the reason to end.
pub(super) async fn configuration_changed(file: Option<&LoadedFile>) -> anyhow::Error {
    let Some(file) = file else {
        return std::future::pending().await;
    };
    config::watch::changed(file).await;
    let path = file.path.display();
    info!("the configuration {path} changed: ending, to be started again with it");
    anyhow!("the configuration {path} changed: the agent must be started again")
}

/// Cancels when a signal says so.
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
