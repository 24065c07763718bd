//! The packet at hand.

use crate::{Family, packet::Packet};

/// May routers fragment a packet?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fragmentable {
    /// No: it is IPv6, or says "don't fragment".
    No,
    /// Yes, and it is a fragment already.
    Fragment,
    /// Yes, and it is whole.
    Whole,
}

/// The packet at hand, beyond what was parsed of it.
pub trait PacketContext<F: Family> {
    /// Index of the device by which a packet that leaves came in; 0 if it is the node's own.
    fn came_in(&self) -> u32;
    /// Index of the device by which a packet that leaves does so.
    fn leaves(&self) -> u32;
    /// The acknowledgment number of a TCP packet with plain headers. Read where the packet is: keeping it from the parse would take stack.
    fn acknowledgment(&self, packet: &Packet<F>) -> u32;
    /// The timestamp of a TCP packet with SYN or FIN, where it stands in the headers that common systems write; 0: none.
    fn timestamp(&self, packet: &Packet<F>) -> u32;
    /// How long a packet is in bytes, from the network header on; of a GSO packet, the longest segment.
    fn size(&self, packet: &Packet<F>) -> u32;
    /// May routers fragment the packet, where the stack can be handed one?
    fn fragmentable(&self, packet: &Packet<F>) -> Fragmentable {
        let _ = packet;
        Fragmentable::No
    }
}
