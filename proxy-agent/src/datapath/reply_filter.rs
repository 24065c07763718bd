//! The agent's side of the reply filter; see `proxy_common::layout::reply_filter`.

use anyhow::Result;
use proxy_common::{
    Family,
    layout::{
        flow::{FlowKey, LookupPoint},
        maps::table,
        reply_filter::{self, CacheLine, EPOCH, Fingerprint, LINE, LINES},
    },
    shared::Shared,
};

use super::{array::MmapArray, maps, pins::Pins};

/// The map `reply_filter`. The data path inserts the flows that it opens meanwhile.
pub(crate) struct ReplyFilter {
    map: MmapArray<CacheLine>,
}

impl ReplyFilter {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// When there is none, or it is of another version.
    pub(crate) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self { map: maps::mmap::<table::ReplyFilter>(pins)? })
    }

    /// Begins an epoch, in which the source of every flow must be inserted; returns its number.
    pub(crate) fn begin(&self) -> u8 {
        self.map.byte(EPOCH, 0).map_or(1, reply_filter::begin)
    }

    /// Inserts an entry's source, if the entry is found by it.
    pub(crate) fn insert<F: Family>(&self, key: &FlowKey<F>) {
        if key.lookup_point == LookupPoint::Forward as u8 {
            return;
        }
        let Some(epoch) = self.map.byte(EPOCH, 0) else { return };
        let Fingerprint { line, bytes } = Fingerprint::of_source(key);
        for byte in bytes.into_iter().filter_map(|at| self.map.byte(line, at)) {
            reply_filter::renew(epoch, byte);
        }
    }

    /// Ends the epoch with this number, in which every flow was inserted: fingerprints without a flow are
    /// cleared.
    pub(crate) fn end(&self, begun: u8) {
        let epoch = self.epoch();
        for line in 0..LINES {
            for byte in (0..LINE).filter_map(|at| self.map.byte(line, at)) {
                reply_filter::expire(epoch, begun, byte);
            }
        }
    }

    fn epoch(&self) -> u8 {
        self.map.byte(EPOCH, 0).map_or(1, Shared::load)
    }
}

#[cfg(test)]
impl ReplyFilter {
    /// A filter that no program sees.
    pub(crate) fn anonymous() -> Self {
        Self { map: MmapArray::anonymous(reply_filter::ELEMENTS) }
    }

    /// Whether it contains the source in this key.
    pub(crate) fn hold<F: Family>(&self, key: &FlowKey<F>) -> bool {
        let Fingerprint { line, bytes } = Fingerprint::of_source(key);
        let is_set = |at| self.map.byte(line, at).is_some_and(|byte| Shared::load(byte) != 0);
        bytes.into_iter().all(is_set)
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{V4, layout::flow::Tuple};

    use super::*;

    fn key(backend: u32, lookup_point: LookupPoint) -> FlowKey<V4> {
        FlowKey::new(Tuple { src: backend, dst: 1, sport: 2, dport: 3 }, 6, lookup_point)
    }

    #[test]
    fn a_fingerprint_stays_while_its_flow_is_met_in_each_epoch() {
        let reply_filter = ReplyFilter::anonymous();
        let (lives, over) = (key(1, LookupPoint::ReverseEgress), key(2, LookupPoint::ReverseEgress));
        let begun = reply_filter.begin();
        reply_filter.insert(&lives);
        reply_filter.insert(&over);
        reply_filter.end(begun);
        // More epochs than numbers.
        for epoch in 0..600 {
            let begun = reply_filter.begin();
            reply_filter.insert(&lives);
            reply_filter.end(begun);
            assert!(reply_filter.hold(&lives), "epoch {epoch}");
            assert_eq!(reply_filter.hold(&over), epoch == 0, "epoch {epoch}");
        }
    }

    #[test]
    fn an_epoch_that_was_broken_off_clears_nothing() {
        let reply_filter = ReplyFilter::anonymous();
        let key = key(1, LookupPoint::ReverseEgress);
        reply_filter.begin();
        reply_filter.insert(&key);
        reply_filter.begin();
        reply_filter.begin();
        assert!(reply_filter.hold(&key));
    }

    #[test]
    fn another_agent_s_epochs_clear_nothing_of_this_one_s() {
        let reply_filter = ReplyFilter::anonymous();
        let key = key(1, LookupPoint::ReverseEgress);
        let begun = reply_filter.begin();
        reply_filter.insert(&key);
        // Started and ended again and again.
        for _ in 0..20 {
            reply_filter.begin();
        }
        reply_filter.end(begun);
        assert!(reply_filter.hold(&key));
    }

    #[test]
    fn entries_for_replies_are_inserted() {
        for (lookup_point, expected) in [
            (LookupPoint::Forward, false),
            (LookupPoint::ReverseEgress, true),
            (LookupPoint::ReverseIngress, true),
        ] {
            let reply_filter = ReplyFilter::anonymous();
            reply_filter.begin();
            reply_filter.insert(&key(1, lookup_point));
            assert_eq!(reply_filter.hold(&key(1, lookup_point)), expected, "{lookup_point:?}");
        }
    }
}
