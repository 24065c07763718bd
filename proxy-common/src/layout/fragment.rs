//! `fragments_v4`, `fragments_v6`: LRU HASH, written by the packet programs.
//!
//! Only the first fragment of a packet has its ports; the programs find them here for the others. Fragments
//! that come before the first one are queued, and come in again behind it.

use crate::{Family, V4, V6};

/// The fields that all fragments of a packet share (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// The identification, as in the header; IPv4's in the lower half.
    pub identification: u32,
    /// IP protocol number with IPv4; 0 with IPv6, where it does not distinguish packets.
    pub protocol: u32,
}

/// The fields that only the first fragment has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentPorts {
    /// Source port, network byte order.
    pub sport: u16,
    /// Destination port, network byte order.
    pub dport: u16,
    /// IP protocol number of the transport header; 0: not a protocol of Services.
    pub protocol: u32,
}

/// `frag_queue_v4`, `frag_queue_v6`: LRU HASH, written by the packet programs: fragments that came before the first one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct QueuedFragmentKey<F: Family> {
    /// The packet that the fragment belongs to.
    pub of: FragmentKey<F>,
    /// Number of the fragment among the queued ones.
    pub number: u32,
}

/// Maximum number of queued fragments of a packet.
pub const MAX_QUEUED: u32 = 6;

/// The bytes of a fragment, link header included.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct QueuedFragment {
    /// Number of bytes.
    pub length: u32,
    /// The bytes.
    pub bytes: [u8; QueuedFragment::CAPACITY],
}

impl QueuedFragment {
    /// Longer fragments are not queued.
    pub const LONGEST: u32 = Self::CAPACITY as u32;
    /// A power of two, so that a mask limits the length.
    const CAPACITY: usize = 2048;

    /// Bounds a length to 1 up to [`Self::LONGEST`] in a form that all verifiers understand: old ones learn
    /// nothing from "is not 0".
    #[inline(always)]
    pub fn bounded(length: u32) -> u32 {
        (core::hint::black_box(length.wrapping_sub(1)) & (Self::LONGEST - 1)) + 1
    }
}

super::plain!(FragmentKey<F>, FragmentPorts, QueuedFragmentKey<F>, QueuedFragment);

const _: () = {
    assert!(size_of::<FragmentKey<V4>>() == 16 && size_of::<FragmentKey<V6>>() == 40);
    assert!(size_of::<FragmentPorts>() == 8);
    assert!(
        size_of::<QueuedFragmentKey<V4>>() == 20
            && size_of::<QueuedFragmentKey<V6>>() == 44
            && size_of::<QueuedFragment>() == 2052
    );
};
