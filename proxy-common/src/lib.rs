//! The contract between the programs in the kernel and the agent, and the decision core that both run.
//!
//! * [`layout`]: keys and values of every map, byte for byte.
//! * [`packet`]: headers in, [`packet::Packet`] out.
//! * [`decide`]: the verdict for a packet or a socket, written once for both address families,
//!   over [`decide::Tables`]: BPF maps in the kernel, anything else outside.
//! * [`checksum`], [`crc32c`]: the effect of a translation on checksums.
//! * [`shared`]: words that programs and agent use at the same time.
//!
//! Addresses and ports are kept as they stand in a packet (network byte order) everywhere here.
#![no_std]

#[cfg(any(test, feature = "memory"))]
extern crate std;

pub mod checksum;
pub mod crc32c;
pub mod decide;
pub mod family;
pub mod layout;
pub mod packet;
pub mod shared;

pub use family::{Family, V4, V6};
