//! The maps `policies` of both families: destinations of IPsec policies.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use proxy_common::layout::policy::Destination;

use super::{
    maps::{MapFamily, Trie},
    pins::Pins,
    sizes::MAX_POLICIES,
};

/// Prefixes of a map that are no longer wanted.
pub(super) struct Stale<F: MapFamily> {
    map: Trie<Destination<F>, u32>,
    keys: Vec<Key<Destination<F>>>,
}

/// Writes the destinations of a family; those that the map has besides are left to be removed later.
pub(super) fn write<F: MapFamily>(pins: &Pins, destinations: &BTreeSet<IpNet>) -> Result<Stale<F>> {
    let context = "cannot write the destinations of IPsec policies";
    let wanted = prefixes::<F>(destinations, MAX_POLICIES as usize);
    let mut map = F::policies(pins).context(context)?;
    let is_wanted = |key: &Key<Destination<F>>| wanted.contains(&(key.prefix_len(), key.data()));
    let keys = map.keys().filter_map(Result::ok).filter(|key| !is_wanted(key)).collect();
    for (length, destination) in wanted {
        map.insert(&Key::new(length, destination), 1, 0).context(context)?;
    }
    Ok(Stale { map, keys })
}

impl<F: MapFamily> Stale<F> {
    /// Removes them.
    pub(super) fn remove(mut self) -> Result<()> {
        for key in &self.keys {
            self.map.remove(key).context("cannot remove the destinations of former IPsec policies")?;
        }
        Ok(())
    }
}

/// Those of a family. If there are too many for the map, or for it with former ones, one that holds them all.
fn prefixes<F: MapFamily>(destinations: &BTreeSet<IpNet>, room: usize) -> Vec<(u32, Destination<F>)> {
    let of_family = destinations.iter().filter_map(|net| {
        F::from_ip(net.network()).map(|addr| (u32::from(net.prefix_len()), Destination { addr }))
    });
    let prefixes: Vec<_> = of_family.collect();
    if prefixes.len() > room / 2 { vec![(0, Destination { addr: F::UNSPECIFIED })] } else { prefixes }
}

#[cfg(test)]
mod tests {
    use proxy_common::{V4, V6};

    use super::*;

    #[test]
    fn too_many_become_one() {
        let nets: BTreeSet<IpNet> =
            ["10.1.0.0/16", "10.2.0.0/16", "fd00::/64"].map(|net| net.parse().unwrap()).into();
        let lengths = |prefixes: Vec<(u32, Destination<V4>)>| -> Vec<u32> {
            prefixes.into_iter().map(|(length, _)| length).collect()
        };
        assert_eq!(lengths(prefixes(&nets, 4)), [16, 16]);
        assert_eq!(lengths(prefixes(&nets, 3)), [0]);
        assert_eq!(prefixes::<V6>(&nets, 3).len(), 1);
        assert_eq!(prefixes::<V6>(&BTreeSet::new(), 3).len(), 0);
    }
}
