//! Keys and values of the maps, byte for byte. One file per map or group of maps. [`maps`] is the list of maps, [`config`] that of constants.
//!
//! Everything is `repr(C)` without hidden padding, 4-byte multiples wide (hash cost grows with the key), and
//! asserted in size and offset. A change here must raise a number of its group: see [`group`].

pub mod affinity;
pub mod backend;
pub mod backend_id;
pub mod by_use;
pub mod cidr;
pub mod config;
pub mod counter;
pub mod destination;
pub mod device;
pub mod event;
pub mod filter;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod group;
pub mod id;
pub mod maps;
pub mod name;
pub mod next_hop;
pub mod outbound;
pub mod probe;
pub mod reply_filter;
pub mod route_mark;
pub mod set;
pub mod socket;
pub mod source_range;

/// Implements aya's marker trait, which the agent needs, for a map type, plain or of a family.
macro_rules! plain {
    ($($type:ident $(<$family:ident>)?),* $(,)?) => { $(
        #[cfg(feature = "user")]
        // SAFETY: `repr(C)`, of integers only, without padding: the size assertions beside each type check it.
        unsafe impl$(<$family: crate::Family>)? aya::Pod for $type$(<$family>)? {}
    )* };
}
pub(crate) use plain;
