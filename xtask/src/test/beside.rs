//! What compiles beside the tests of traffic, which mostly wait: at the lowest priority, so that they do not notice.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow};

use super::Score;
use crate::{
    build, doc, image, lint,
    workspace::{NICE, run_by},
};

/// Work on a thread, until its value is taken.
pub(super) enum Task<T> {
    /// Under way.
    Running(JoinHandle<T>),
    /// Done; nothing if it panicked.
    Done(Option<T>),
}

impl<T: Send + 'static> Task<T> {
    fn start(work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self::Running(thread::spawn(work))
    }

    /// Waits until it is done.
    pub(super) fn wait(self) -> Self {
        match self {
            Self::Running(thread) => Self::Done(thread.join().ok()),
            done @ Self::Done(_) => done,
        }
    }

    /// Waits for its value.
    pub(super) fn value(self) -> Result<T> {
        match self.wait() {
            Self::Done(Some(value)) => Ok(value),
            _ => Err(anyhow!("a thread panicked")),
        }
    }
}

/// The archive of the image for the tests of the deployment.
pub(super) fn image() -> Task<Result<PathBuf>> {
    Task::start(|| image::archive_of_tests(&build::unoptimised_release()?))
}

/// Clippy and rustdoc.
pub(super) fn lint() -> Task<Score> {
    Task::start(|| {
        let mut score = Score::default();
        for command in lint::clippy() {
            score.add(check("clippy", &command));
        }
        score.add(check("rustdoc", &doc::rustdoc()));
        score
    })
}

/// Runs a check and prints it as libtest would; its output only if it fails.
fn check(name: &str, command: &Command) -> Score {
    let mut command = run_by(&NICE, command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}"));
    match output {
        Ok(output) if output.status.success() => {
            println!("test {name} ... ok");
            return Score { passed: 1, failed: 0 };
        }
        Ok(output) => println!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => println!("{error:#}"),
    }
    println!("test {name} ... FAILED");
    Score { passed: 0, failed: 1 }
}
