//! Clippy and rustdoc, counted as tests.

use std::process::{Command, Stdio};

use anyhow::Context;

use super::Score;
use crate::{doc, lint};

/// Clippy and rustdoc.
pub(super) fn lint() -> Score {
    let mut score = Score::default();
    for mut command in lint::clippy() {
        score.add(check("clippy", &mut command));
    }
    score.add(check("rustdoc", &mut doc::rustdoc()));
    score
}

/// Runs a check and prints it as libtest would; its output only if it fails.
fn check(name: &str, command: &mut Command) -> Score {
    match command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {name}")) {
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
