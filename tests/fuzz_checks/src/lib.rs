//! The fuzz targets: they take any bytes, and a panic is a defect. `tests/fuzz` runs them under libFuzzer (`cargo xtask
//! fuzz`), `tests/tests/unit/fuzz_replay.rs` on the seeds and a bounded number of their mutants.

mod api;
mod bytes;
mod flows;
mod mutate;
mod packet;
mod text;
mod watch;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub use api::{objects, sock_diag};
pub use flows::flows;
pub use mutate::Mutator;
pub use packet::parse_packet;
pub use text::{arguments, configuration, manifests, values};
pub use watch::watch;

/// A target: name and function. Seeds are in the folder of its name in `tests/fuzz/seeds`.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("parse_packet", parse_packet),
    ("flows", flows),
    ("manifests", manifests),
    ("objects", objects),
    ("watch", watch),
    ("configuration", configuration),
    ("values", values),
    ("arguments", arguments),
    ("sock_diag", sock_diag),
];

/// The folder of a target's seeds.
pub fn seeds_dir(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target)
}

/// The seeds of a target, with their paths, in the order of their names.
///
/// # Errors
/// When the folder cannot be read.
pub fn seeds(target: &str) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let dir = seeds_dir(target);
    let entries = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    let mut seeds = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        seeds.push((path, bytes));
    }
    seeds.sort();
    Ok(seeds)
}
