//! The core against tables in memory, for both families.

mod affinity;
mod attacks;
mod consistency;
mod ends;
mod evidence;
mod fast_path;
mod fixture;
mod flows;
mod fragments;
mod places;
mod pod;
mod ports;
mod rejects;
mod snat;
mod socket;
mod uplink;

/// Makes a test for each family from each generic function.
macro_rules! for_both_families {
    ($($name:ident)*) => {
        mod v4 {
            $(#[test] fn $name() { super::$name::<crate::V4>() })*
        }
        mod v6 {
            $(#[test] fn $name() { super::$name::<crate::V6>() })*
        }
    };
}
use for_both_families;
