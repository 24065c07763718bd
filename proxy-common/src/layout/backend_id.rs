//! `backend_ids`: mmap-able ARRAY by the index of a backend's id, written by the agent for its successor; the programs never read it.
//!
//! `backend_sets` and `backends` have the same data, but releases may differ in their layouts. By `backend_ids`
//! and `service_names`, a release with other layouts gives service ports and endpoints the ids that flows and
//! sockets refer to.

use super::id::Id;

/// The owner of an id: an endpoint of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendId {
    /// The endpoint's address; IPv4 addresses are IPv4-mapped.
    pub addr: [u8; 16],
    /// The service port.
    pub service: Id,
    /// The id; [`Id::NONE`]: the index is free.
    pub id: Id,
    /// Network byte order.
    pub port: u16,
    /// Always 0.
    pub zero: u16,
}

super::plain!(BackendId);

const _: () = assert!(size_of::<BackendId>() == 28);
