//! Services.

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

/// An affinity entry, read in the map. Other CPUs may change it.
pub trait AffinityHandle<F: Family>: Deref<Target = Affinity<F>> {
    /// Marks it as used at `now` (jiffies).
    fn touch(&self, now: u32);
}

/// Services: frontends, backends, session affinity, source ranges.
pub trait ServiceTables<F: Family> {
    /// An affinity entry.
    type Affinity: AffinityHandle<F>;
    /// Looks the frontend up in the filter: false means certainly no frontend.
    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool;
    /// The target of a frontend.
    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target>;
    /// The backends of a service port.
    fn set(&self, service: Id, set_policy: SetPolicy) -> BackendSet;
    /// One backend.
    fn backend(&self, slot: u32) -> Option<&Backend<F>>;
    /// Whether the backend still serves.
    fn is_alive(&self, backend: Id) -> bool;
    /// Whether the backend serves and is in the set of this policy.
    fn is_member(&self, backend: Id, set_policy: SetPolicy) -> bool;
    /// How long a client of a service port keeps its backend, in jiffies.
    fn affinity_timeout(&self, service: Id) -> u32;
    /// The previous backend of a client.
    fn affinity(&self, key: &AffinityKey<F>) -> Option<Self::Affinity>;
    /// Records the backend of a client, if the map has room.
    fn remember_affinity(&self, key: &AffinityKey<F>, affinity: &Affinity<F>);
    /// Whether this client may use the service port's frontends that have source ranges.
    fn allows_source(&self, service: Id, addr: &F::Addr) -> bool;
    /// Whether the address is in a range of service addresses.
    fn is_service_address(&self, addr: &F::Addr) -> bool;
}
