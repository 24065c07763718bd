//! What the tests of the whole share.

pub mod apiserver;
pub mod cluster;
#[cfg(feature = "packets")]
pub mod packets;
pub mod traffic;
