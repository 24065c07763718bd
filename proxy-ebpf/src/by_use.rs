//! Access to maps that grow while they are used. `proxy_common::layout::by_use` has the protocol with the agent.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{ArrayOfMaps, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use proxy_common::layout::{
    by_use::{CURRENT, PREVIOUS, SLOTS, STEP, insertions_of},
    maps::{DeclaredMap, table},
};

use crate::maps::indexed;

#[btf_map(name = "insertions")]
static INSERTIONS: indexed!(PerCpuArray, table::Insertions) = PerCpuArray::new();
#[btf_map(name = "growth_signals")]
static GROWTH_SIGNALS: RingBuf<u32, { table::GrowthSignals::ENTRIES }> = RingBuf::new();

/// A map in the place of another one that it may be replacing.
type ByUse<K, V, const N: usize, const F: usize> = ArrayOfMaps<LruHashMap<K, V, N, F>, SLOTS>;

/// An entry, also of the map that is being replaced.
#[inline(always)]
pub(crate) fn find<K, V, const N: usize, const F: usize>(map: &ByUse<K, V, N, F>, key: &K) -> Option<*mut V> {
    if let Some(current) = map.get(CURRENT)
        && let Some(value) = current.get_ptr_mut(key)
    {
        return Some(value);
    }
    map.get(PREVIOUS)?.get_ptr_mut(key)
}

/// Inserts an entry, and counts it under the map's index. With `BPF_NOEXIST` neither map may have one with this key; the agent leaves
/// entries that it copied in the previous map, so that none is missed on its way.
#[inline(always)]
pub(crate) fn insert<M: DeclaredMap, const N: usize, const F: usize>(
    map: &ByUse<M::Key, M::Value, N, F>,
    key: &M::Key,
    value: &M::Value,
    flags: u64,
) -> Result<(), i32> {
    const NO_MAP: i32 = -2;
    const EEXIST: i32 = -17;
    if flags == BPF_NOEXIST as u64
        && let Some(previous) = map.get(PREVIOUS)
        && previous.get_ptr(key).is_some()
    {
        return Err(EEXIST);
    }
    map.get(CURRENT).ok_or(NO_MAP)?.insert(key, value, flags)?;
    count(const { insertions_of(&M::DEFINITION).expect("a map that grows by use") });
    Ok(())
}

/// Removes an entry: from the map that is being replaced first, so that the agent does not copy it afterwards.
#[inline(always)]
pub(crate) fn remove<K, V, const N: usize, const F: usize>(map: &ByUse<K, V, N, F>, key: &K) {
    // A missing entry counts as removed.
    if let Some(previous) = map.get(PREVIOUS) {
        let _ = previous.remove(key);
    }
    if let Some(current) = map.get(CURRENT) {
        let _ = current.remove(key);
    }
}

#[inline(always)]
fn count(index: u32) {
    let Some(inserted) = INSERTIONS.get_ptr_mut(index) else { return };
    // SAFETY: this CPU's own value; a nested program may lose a count, no more.
    let count = unsafe {
        *inserted += 1;
        *inserted
    };
    if count.is_multiple_of(STEP) {
        // A full ring has a signal already.
        let _ = GROWTH_SIGNALS.output(index, 0);
    }
}
