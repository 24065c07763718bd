//! The kernel programs on single packets: a node made of a namespace and filled maps, frames, and `BPF_PROG_TEST_RUN`.

mod by_use;
mod contents;
mod family;
mod frame;
pub mod helpers;
mod kernel;
mod node;
mod pool;
pub mod random;
mod slow_path;
pub mod sys;
pub mod talk;

pub use family::{Host, PacketFamily};
pub use frame::{CLIENT_ISN, Frame, SERVER_ISN, Transport, checksums_are_valid, ends, same_frame};
pub use kernel::{Kernel, Options};
pub use node::{Device, Node, SNAT, memory_tables};
pub use slow_path::{IcmpError, fragments, header, icmp_error, with_extensions};
