//! Code that tests, benchmarks and the demo build on: clusters of network namespaces with real traffic, cases of traffic through
//! them, and names for features that an old kernel lacks.

pub mod cluster;
pub mod kernel_capabilities;
pub mod kube_proxy;
pub mod traffic;

use std::path::Path;

/// The repository's root directory.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// How often a test repeats its attempts: as often as `cargo xtask nightly` requests, or as usual.
pub fn rounds(usual: usize) -> usize {
    std::env::var("PROXY_TESTS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}
