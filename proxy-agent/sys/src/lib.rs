//! Raw system calls: bpf(2) in the forms that aya does not have, and a few others that no crate has.
//!
//! The agent's data path and the tests both stand on this, so that each command is spelt once. It knows nothing of the agent's maps and
//! programs.

pub mod bpf;
pub mod process;
pub mod socket;
