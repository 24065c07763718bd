//! What the tests of the whole share.

pub mod apiserver;
pub mod bench;
pub mod bystander;
pub mod chart;
pub mod cluster;
pub mod conformance;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod lacks;
pub mod load;
pub mod networks;
#[cfg(feature = "packets")]
pub mod packets;
pub mod traffic;
