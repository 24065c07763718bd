//! Checked regularly: files with credentials, and the release of the API server.

use kube::Client;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::debug;

use super::{Timing, backoff::jittered, transport::Transport};
use crate::source::{SourceState, state::Release};

/// In units of [`Timing::reload`]: an upgrade of the control plane is seen within the hour.
const RELEASE_EVERY: u32 = 60;

/// Does it for ever.
pub(super) async fn run(
    transport: &Transport,
    client: &Client,
    timing: Timing,
    state: &watch::Sender<SourceState>,
) {
    let every = timing.reload;
    let mut ask_again = Instant::now();
    let mut synced = state.subscribe();
    // An error means that the receivers are gone; then this ends soon.
    let _ = timeout(every, synced.wait_for(SourceState::is_synced)).await;
    loop {
        if Instant::now() >= ask_again && state.borrow().is_synced() {
            match timeout(timing.answer, client.apiserver_version()).await {
                Ok(Ok(info)) => {
                    let release =
                        Release { major: info.major, minor: info.minor, git_version: info.git_version };
                    // Nothing waits for this.
                    state.send_if_modified(|state| {
                        state.release = Some(release);
                        false
                    });
                    ask_again = Instant::now() + every * RELEASE_EVERY + jittered(every);
                }
                Ok(Err(error)) => debug!("the API server does not report its release: {error}"),
                Err(_) => debug!("the API server does not report its release in time"),
            }
        }
        sleep(every).await;
        transport.reload(None).await;
    }
}
