//! The current packet.

use crate::{Family, packet::Packet};

/// Whether routers may fragment a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fragmentable {
    /// No: it is IPv6, or has the DF bit.
    No,
    /// Yes, and it is a fragment already.
    Fragment,
    /// Yes, and it is not a fragment.
    Whole,
}

/// Properties of the current packet that the parser does not deliver.
pub trait PacketContext<F: Family> {
    /// Index of the device by which a leaving packet came in; 0 if it is the node's own.
    fn came_in(&self) -> u32;
    /// Index of the device by which a packet leaves.
    fn leaves(&self) -> u32;
    /// The acknowledgment number of a TCP packet without options or extension headers. Read from the packet:
    /// keeping it from the parse would take stack.
    fn acknowledgment(&self, packet: &Packet<F>) -> u32;
    /// The timestamp of a TCP packet with SYN or FIN, at its place in the headers that common systems write; 0:
    /// none.
    fn timestamp(&self, packet: &Packet<F>) -> u32;
    /// Length of a packet in bytes, from the network header on; of a GSO packet, that of the longest segment.
    fn size(&self, packet: &Packet<F>) -> u32;
    /// Whether routers may fragment the packet; [`Fragmentable::No`] where the packet cannot be passed to the
    /// stack.
    fn fragmentable(&self, packet: &Packet<F>) -> Fragmentable {
        let _ = packet;
        Fragmentable::No
    }
}
