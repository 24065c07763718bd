//! Services.

use aya_ebpf::btf_maps::Array;
use proxy_common::{
    decide::ServiceTables,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::{Backend, BackendState},
        counter::Counter,
        filter,
        frontend::{Frontend, FrontendKey, Target},
        id::Id,
        set::{BackendSet, SetPolicy},
    },
};

use super::{AffinityEntry, Kernel, count};
use crate::{
    family::KernelFamily,
    maps::{BACKEND_SETS, BACKEND_STATES, VIP_FILTER},
};

/// An element that the agent publishes with one store, read by one load.
#[inline(always)]
fn published<T: Copy, const ENTRIES: usize, const FLAGS: usize>(
    map: &Array<T, ENTRIES, FLAGS>,
    index: u32,
) -> Option<T> {
    // SAFETY: the kernel gave the pointer.
    map.get_ptr(index).map(|element| unsafe { element.read_volatile() })
}

impl<F: KernelFamily> ServiceTables<F> for Kernel {
    type Affinity = AffinityEntry<F>;

    #[inline(always)]
    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        let holds = |fingerprint: filter::Fingerprint| {
            VIP_FILTER.get(fingerprint.element).is_some_and(|element| fingerprint.is_in(*element))
        };
        holds(filter::of_address::<F>(addr)) || holds(filter::of_frontend::<F>(addr, port, protocol))
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target> {
        let value = F::frontend(key)?;
        // SAFETY: the kernel gave the pointer.
        if let Some(target) = unsafe { Frontend::read(value, key) } {
            return Some(target);
        }
        // The kernel recycled the element meanwhile; the map has the key's own element by now, or none.
        let value = F::frontend(key)?;
        // SAFETY: as above.
        let target = unsafe { Frontend::read(value, key) };
        if target.is_none() {
            count(Counter::FrontendTorn);
        }
        target
    }

    #[inline(always)]
    fn set(&self, service: Id, set_policy: SetPolicy) -> BackendSet {
        published(&BACKEND_SETS, BackendSet::index(service, set_policy)).unwrap_or(BackendSet::EMPTY)
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<&Backend<F>> {
        // SAFETY: the kernel gave the pointer; slots do not change while a set refers to them.
        F::backend(slot).map(|backend| unsafe { &*backend })
    }

    #[inline(always)]
    fn is_alive(&self, backend: Id) -> bool {
        published(&BACKEND_STATES, BackendState::position(backend).0)
            .is_some_and(|element| element.holds(backend))
    }

    #[inline(always)]
    fn is_member(&self, backend: Id, set_policy: SetPolicy) -> bool {
        published(&BACKEND_STATES, BackendState::position(backend).0)
            .is_some_and(|element| element.holds_in(backend, set_policy))
    }

    #[inline(always)]
    fn affinity_timeout(&self, service: Id) -> u32 {
        published(&BACKEND_SETS, BackendSet::affinity_index(service)).map_or(0, |word| word.0 as u32)
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F>) -> Option<AffinityEntry<F>> {
        F::affinity(key).map(AffinityEntry)
    }

    #[inline(always)]
    fn remember_affinity(&self, key: &AffinityKey<F>, affinity: &Affinity<F>) {
        F::put_affinity(key, affinity);
    }

    #[inline(always)]
    fn allows_source(&self, service: Id, addr: &F::Addr) -> bool {
        F::has_source_range(service, addr)
    }

    #[inline(always)]
    fn is_service_address(&self, addr: &F::Addr) -> bool {
        F::service_cidrs().is_some_and(|cidrs| cidrs.contains(addr))
    }
}
