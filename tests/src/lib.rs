//! Code that the tests of the whole share.

pub mod apiserver;
pub mod bench;
pub mod bystander;
pub mod chart;
pub mod cluster;
pub mod conformance;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod kernel_capabilities;
pub mod load;
pub mod networks;
#[cfg(feature = "packets")]
pub mod packets;
pub mod traffic;

/// How often a test repeats its attempts: as often as `cargo xtask nightly` requests, or as usual.
pub fn rounds(usual: usize) -> usize {
    std::env::var("PROXY_TESTS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}
