//! `policies_v4`, `policies_v6`: LPM_TRIE, written by the agent: destinations that IPsec (`xfrm`) policies of the node are for. Read with a
//! look-up of the FIB, where a device has [`DEVICE_POLICIES`](super::device::DEVICE_POLICIES).

use crate::{Family, V4, V6};

/// What stands behind the prefix length in a key of the trie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Destination<F: Family> {
    /// The prefix.
    pub addr: F::Addr,
}

super::plain!(Destination<F>);

const _: () = assert!(size_of::<Destination<V4>>() == 4 && size_of::<Destination<V6>>() == 16);
