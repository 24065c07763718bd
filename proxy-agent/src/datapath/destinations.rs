//! The maps `destinations` of both families: IPsec policies, and attributes of routes that `bpf_fib_lookup` does not report.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::successors,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use proxy_common::layout::destination::{Destination, HINT_STACK, RouteHint};

use super::{
    map_types::Prefix,
    maps::{MapFamily, Trie},
    pins::Pins,
    sizes::MAX_POLICIES,
};
use crate::net::{routes::Hint, topology::Topology, xfrm::everything};

/// Prefixes of a map that are no longer wanted.
pub(super) struct Stale<F: MapFamily> {
    map: Trie<Destination<F>, RouteHint>,
    keys: Vec<Prefix<Destination<F>>>,
}

/// Writes the destinations of a family; those that the map has besides are left to be removed later.
pub(super) fn write<F: MapFamily>(pins: &Pins, topology: &Topology) -> Result<Stale<F>> {
    let context = "cannot write the map `destinations`";
    let wanted = merged::<F>(&topology.policies, &topology.hints, MAX_POLICIES);
    let mut map = F::destinations(pins).context(context)?;
    let is_wanted = |key: &Prefix<Destination<F>>| wanted.iter().any(|(wanted, _)| wanted == key);
    let entries = map.entries().context(context)?;
    let keys = entries.into_iter().map(|(key, _)| key).filter(|key| !is_wanted(key)).collect();
    for (key, hint) in &wanted {
        map.insert(*key, *hint).context(context)?;
    }
    Ok(Stale { map, keys })
}

impl<F: MapFamily> Stale<F> {
    /// Removes them.
    pub(super) fn remove(mut self) -> Result<()> {
        for key in self.keys {
            self.map.remove(key).context("cannot remove former elements of the map `destinations`")?;
        }
        Ok(())
    }
}

/// The entries for the destinations of a family. The longest prefix decides, so each entry includes those of the prefixes around it: any
/// policy, the longest route. If there are too many policies, everything has one.
fn merged<F: MapFamily>(
    policies: &BTreeSet<IpNet>,
    hints: &BTreeMap<IpNet, Hint>,
    max_policies: usize,
) -> Vec<(Prefix<Destination<F>>, RouteHint)> {
    let is_of_family = |net: &&IpNet| F::from_ip(net.network()).is_some();
    let mut policies: BTreeSet<IpNet> = policies.iter().filter(is_of_family).copied().collect();
    if policies.len() > max_policies {
        policies = everything().iter().filter(is_of_family).copied().collect();
    }
    let around = |net: &IpNet| successors(Some(*net), IpNet::supernet);
    let all: BTreeSet<IpNet> = policies.iter().chain(hints.keys().filter(is_of_family)).copied().collect();
    all.iter()
        .filter_map(|net| {
            let addr = F::from_ip(net.network())?;
            let hint = around(net).find_map(|net| hints.get(&net)).copied().unwrap_or_default();
            let has_policy = around(net).any(|net| policies.contains(&net));
            let hint = RouteHint {
                flags: if has_policy { HINT_STACK } else { 0 },
                mtu: hint.mtu.unwrap_or(0),
                ifindex: hint.encapsulates_by.unwrap_or(0),
            };
            Some(((net.prefix_len().into(), Destination { addr }), hint))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proxy_common::{V4, V6};

    use super::*;

    fn nets<const N: usize>(nets: [&str; N]) -> BTreeSet<IpNet> {
        nets.map(|net| net.parse().unwrap()).into()
    }

    fn elements<F: MapFamily>(
        policies: &BTreeSet<IpNet>,
        hints: &BTreeMap<IpNet, Hint>,
        room: usize,
    ) -> Vec<(u32, u32, u32, u32)> {
        let merged = merged::<F>(policies, hints, room);
        merged.iter().map(|((bits, _), hint)| (*bits, hint.flags, hint.mtu, hint.ifindex)).collect()
    }

    #[test]
    fn too_many_policies_become_one() {
        let (policies, none) = (nets(["10.1.0.0/16", "10.2.0.0/16", "fd00::/64"]), BTreeMap::new());
        assert_eq!(elements::<V4>(&policies, &none, 2), [(16, 1, 0, 0), (16, 1, 0, 0)]);
        assert_eq!(elements::<V4>(&policies, &none, 1), [(0, 1, 0, 0)]);
        assert_eq!(elements::<V6>(&policies, &none, 1), [(64, 1, 0, 0)]);
        assert_eq!(elements::<V6>(&BTreeSet::new(), &none, 1), []);
    }

    #[test]
    fn the_longest_prefix_has_what_holds_around_it() {
        let hint = |net: &str, mtu, encapsulates_by| (net.parse().unwrap(), Hint { mtu, encapsulates_by });
        let hints = BTreeMap::from([
            hint("10.244.0.0/16", Some(1400), None),
            hint("10.244.2.0/24", None, None),
            hint("10.245.0.0/16", Some(1450), Some(7)),
            hint("fd00::/64", Some(1300), Some(8)),
        ]);
        let policies = nets(["10.244.0.0/15", "10.244.2.0/25", "10.245.9.0/24", "10.250.0.0/16"]);
        assert_eq!(
            elements::<V4>(&policies, &hints, 9),
            [
                (15, 1, 0, 0),
                (16, 1, 1400, 0),
                (24, 1, 0, 0),
                (25, 1, 0, 0),
                (16, 1, 1450, 7),
                (24, 1, 1450, 7),
                (16, 1, 0, 0),
            ]
        );
        assert_eq!(elements::<V4>(&BTreeSet::new(), &hints, 9).len(), 3);
        assert_eq!(elements::<V6>(&policies, &hints, 9), [(64, 0, 1300, 8)]);
    }
}
