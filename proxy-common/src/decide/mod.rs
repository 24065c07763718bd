//! The decision core: the verdict for a packet or a socket.
//!
//! It is written once, for both families, over [`Tables`]. In the kernel the tables are BPF maps and helpers;
//! `proxy-agent debug trace` runs the same code over the live maps, tests over maps in memory.

pub mod fast_path;
mod find;
mod flow;
mod fragment;
mod frontend;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
mod packet;
mod shared_peers;
mod socket;
mod socket_seen;
mod tables;
#[cfg(test)]
mod tests;
mod track;
mod verdict;

pub use find::find;
pub use flow::{attempt, confirm, open};
pub use fragment::{Completion, complete, may_be_for_service};
pub use packet::{new_flow, opened, pod_egress, pod_ingress, uplink_egress, uplink_ingress};
pub use socket::{
    SocketClient, SocketOrigin, connect, find_shared, may_be_translated, send, share, translate,
};
pub use socket_seen::{Seen, datagram_source, peer_name, remember_connected};
pub use tables::{
    AffinityHandle, Attempt, Claim, FlowHandle, FlowTables, Found, Fragmentable, Inserted, NodeAddress,
    NodeTables, PacketContext, Route, RouteKind, ServiceTables, SocketTables, Step, Tables,
};
pub use verdict::{DropReason, SocketVerdict, Translation, Verdict};
