//! Services, EndpointSlices, ServiceCIDRs and this Node from a folder of YAML and JSON files, followed as they change.
//!
//! The folder's files (not those of its subfolders) named `*.yaml`, `*.yml` or `*.json` are read. Where inotify cannot
//! see a change (behind symbolic links, on network file systems), a look at the files' times every few seconds does.

mod documents;
mod folder;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::documents::Format;
use self::{
    documents::{Content, Notice, Object, Parsed, Problem},
    folder::{Folder, LogNotice, Reading},
};
use super::{SourceState, state::Reporter};
use crate::{
    folder_watch::{FolderWatch, Touched},
    model::objects::Change,
};

/// The changes in the text of a file, and the parts that could not be read or are ignored, each with its line: the same as
/// [`run`] makes of one file, without the folder. `node` is the one Node that counts.
pub fn read_text(text: &str, format: Format, node: &str) -> (Vec<Change>, Vec<String>) {
    let Parsed { objects, problems, ignored } = documents::parse(text, format, node);
    let problems = problems.into_iter();
    let mut logged: Vec<_> =
        problems.map(|Problem { line, column, what }| format!("{line}:{column}: {what}")).collect();
    let mut changes = Vec::with_capacity(objects.len());
    logged.extend(ignored.into_iter().map(|Notice { line, what, .. }| format!("{line}: {what}")));
    for Object { line, content, problems } in objects {
        logged.extend(problems.into_iter().map(|problem| format!("{line}: {problem}")));
        match content {
            Content::Change(change) => changes.push(change),
            Content::Endpoints(mirrored) => {
                changes.extend(mirrored.slices.into_iter().map(Change::EndpointSlice));
            }
        }
    }
    (changes, logged)
}

/// How often to look for changes that inotify does not show, the folder's own appearance included.
const RECHECK: Duration = Duration::from_secs(2);

/// Reads and follows a folder until `cancel` or until the receiver of `changes` is gone.
///
/// The folder may appear later. While it is away, everything stays as it was. Of Nodes only the one named `node` counts.
///
/// # Errors
///
/// Only if the runtime cannot start a thread. Problems of the files are logged and shown in `state`.
pub async fn run(
    path: PathBuf,
    node: String,
    changes: mpsc::Sender<Change>,
    state: watch::Sender<SourceState>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let reporter = Reporter::new(&path.display().to_string(), &state);
    cancel.run_until_cancelled(follow(path, node, changes, reporter)).await.unwrap_or(Ok(()))
}

async fn follow(
    path: PathBuf,
    node: String,
    changes: mpsc::Sender<Change>,
    reporter: Reporter,
) -> anyhow::Result<()> {
    reporter.begins();
    info!("reading manifests from {}", path.display());
    let mut events = FolderWatch::new(path.clone());
    let mut folder = Folder::new(path, node);
    let mut recheck = tokio::time::interval(RECHECK);
    recheck.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        let touched = tokio::select! {
            () = changes.closed() => return Ok(()),
            touched = events.settled() => touched,
            _ = recheck.tick() => Touched::default(),
        };
        // Before reading, so that changes while we read are seen as well.
        events.attach();
        reporter.heard();
        let reading;
        (folder, reading) = tokio::task::spawn_blocking(move || {
            let reading = folder.read(&touched);
            (folder, reading)
        })
        .await
        .context("reading the manifests failed")?;
        if !publish(reading, &changes, &reporter).await {
            return Ok(());
        }
    }
}

/// Sends the changes and reports the problems. Returns whether the receiver still exists.
async fn publish(reading: Reading, changes: &mpsc::Sender<Change>, reporter: &Reporter) -> bool {
    let Reading { changes: found, new_problems, new_notices, worst, complete } = reading;
    for problem in new_problems {
        warn!("{problem}");
    }
    for LogNotice { text, is_warning } in new_notices {
        if is_warning { warn!("{text}") } else { info!("{text}") }
    }
    for change in found {
        if changes.send(change).await.is_err() {
            return false;
        }
    }
    match worst {
        Some(problem) => drop(reporter.failed(&problem, "")),
        None => {
            if reporter.recovered().is_some() {
                info!("all manifests are in order now");
            }
        }
    }
    if complete {
        reporter.synced();
    }
    true
}

#[cfg(test)]
mod tests;
