//! Entries of sockets in the map that all share. A network namespace has its own places, in buckets of a few: its sockets
//! push out each other's entries, never those of other namespaces.

use super::tables::SocketTables;
use crate::{
    Family,
    layout::socket::{SharedKey, SharedPeer},
};

/// Reads what is known of an entry's key into it; false if that is nothing.
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

/// Writes an entry, unless it is there already: over the one with its key, else where there is room, else over another of
/// the same namespace. False: the map takes no more.
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
