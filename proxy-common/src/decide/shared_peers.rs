//! Socket entries in the map that all sockets share. Each network namespace has its own slots, in buckets of a
//! few: its sockets evict each other's entries, never those of other namespaces.

use super::tables::SocketTables;
use crate::{
    Family,
    layout::socket::{SharedKey, SharedPeer},
};

/// Looks up the entry with this key and reads its peer; false if the map has none.
#[inline(always)]
pub(super) fn get<F: Family, T: SocketTables<F>>(tables: &T, entry: &mut SharedPeer<F>) -> bool {
    let mut slot = SharedKey::new(tables.netns(), entry.key.bucket());
    for way in 0..SharedKey::WAYS {
        slot.set_way(way);
        if let Some(found) = tables.shared_peer(&slot)
            && found.key.same(&entry.key)
        {
            entry.peer = found.peer;
            return true;
        }
    }
    false
}

/// Writes an entry, unless the map has an identical one: over the one with its key, else into a free slot, else
/// over another of the same namespace. False if the map is full.
#[inline(always)]
pub(super) fn set<F: Family, T: SocketTables<F>>(tables: &T, entry: &SharedPeer<F>) -> bool {
    let mut slot = SharedKey::new(tables.netns(), entry.key.bucket());
    let mut chosen = tables.random() % SharedKey::WAYS;
    for way in 0..SharedKey::WAYS {
        slot.set_way(way);
        match tables.shared_peer(&slot) {
            Some(found) if found.key.same(&entry.key) => {
                if found.peer.same(&entry.peer) {
                    return true;
                }
                chosen = way;
                break;
            }
            Some(_) => {}
            None => chosen = way,
        }
    }
    slot.set_way(chosen);
    tables.set_shared_peer(&slot, entry)
}
