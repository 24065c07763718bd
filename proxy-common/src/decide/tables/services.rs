//! What Services are.

use core::ops::Deref;

use crate::{
    Family,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::Backend,
        frontend::{FrontendKey, Target},
        id::Id,
        set::{BackendSet, SetPolicy},
    },
};

/// An affinity entry that was found, read where it is. Others may be changing it.
pub trait AffinityHandle<F: Family>: Deref<Target = Affinity<F>> {
    /// Marks it as used at `now` (jiffies).
    fn touch(&self, now: u32);
}

/// What Services are: frontends, backends, session affinity, source ranges.
pub trait ServiceTables<F: Family> {
    /// An affinity entry.
    type Affinity: AffinityHandle<F>;
    /// The filter: false means surely no frontend.
    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool;
    /// What a frontend leads to.
    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target>;
    /// The backends of a service port.
    fn set(&self, service: Id, set_policy: SetPolicy) -> BackendSet;
    /// One backend.
    fn backend(&self, slot: u32) -> Option<&Backend<F>>;
    /// Does the backend still serve?
    fn is_alive(&self, backend: Id) -> bool;
    /// Does it, and is it in the set of this policy?
    fn is_member(&self, backend: Id, set_policy: SetPolicy) -> bool;
    /// How long a client of a service port keeps its backend, in jiffies.
    fn affinity_timeout(&self, service: Id) -> u32;
    /// The backend that a client had.
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Self::Affinity>;
    /// Remembers it, if the map takes it.
    fn remember_affinity(&self, key: &AffinityKey<F>, affinity: &Affinity<F>);
    /// May this client use the service port's frontends that have source ranges?
    fn allows_source(&self, service: Id, addr: &F::Addr) -> bool;
    /// Is the address in a range of service addresses?
    fn is_service_address(&self, addr: &F::Addr) -> bool;
}
