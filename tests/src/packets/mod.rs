//! The kernel programs on single packets: a node made of a namespace and filled maps, frames, and `BPF_PROG_TEST_RUN`.

mod contents;
mod family;
mod frame;
mod kernel;
mod node;
mod pool;
pub mod random;
pub mod sys;
pub mod talk;
mod unusual;
pub mod words;

pub use family::{Host, PacketFamily};
pub use frame::{CLIENT_ISN, Frame, SERVER_ISN, Transport, checksums_are_valid, ends, same_frame};
pub use kernel::{Kernel, Options};
pub use node::{Device, Node, SNAT, memory_tables};
pub use unusual::{IcmpError, fragments, header, icmp_error, with_extensions};
