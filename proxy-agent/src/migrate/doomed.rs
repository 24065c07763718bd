//! The part of a table that goes with kube-proxy's chains.

use std::collections::BTreeSet;

use crate::kube_proxy::{MARK_MASQ, POSTROUTING, has_chain};

/// Tables of iptables that have chains of kube-proxy.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains that every table has by itself.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The part of a table that goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Doomed {
    /// Chains.
    pub(super) chains: BTreeSet<String>,
    /// Chains of kube-proxy that others use, and so stay.
    pub(super) kept: BTreeSet<String>,
}

impl Doomed {
    /// The part of a table with these chains, and with rules that lead from the first chain to the second.
    ///
    /// CNI plugins may mark packets for masquerading by KUBE-MARK-MASQ (portmap's `externalSetMarkChain`). Then it stays, and
    /// KUBE-POSTROUTING, which masquerades marked packets.
    pub(super) fn of<'t>(
        chains: impl IntoIterator<Item = &'t str>,
        mut jumps: impl Iterator<Item = (&'t str, &'t str)>,
    ) -> Self {
        let is_used =
            jumps.any(|(from, to)| to == MARK_MASQ && !has_chain(from) && !BUILT_IN.contains(&from));
        let of_kube_proxy = chains.into_iter().filter(|chain| has_chain(chain)).map(str::to_owned);
        let (kept, chains) =
            of_kube_proxy.partition(|chain| is_used && [MARK_MASQ, POSTROUTING].contains(&chain.as_str()));
        Self { chains, kept }
    }

    /// Whether this chain goes.
    pub(super) fn has(&self, chain: &str) -> bool {
        self.chains.contains(chain)
    }

    /// Whether a rule goes that leads from one chain to another, by itself and not with its chain.
    pub(super) fn cuts(&self, from: &str, to: &str) -> bool {
        self.has(to) && !self.has(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_that_others_set_stays() {
        let chains = ["PREROUTING", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING", "CNI-DN-1"];
        let own = [("PREROUTING", "KUBE-SERVICES"), ("KUBE-SERVICES", "KUBE-MARK-MASQ")];
        let doomed = Doomed::of(chains, own.into_iter());
        assert_eq!(doomed.chains.len(), 3);
        assert!(doomed.kept.is_empty());
        assert!(doomed.cuts("PREROUTING", "KUBE-SERVICES"));
        assert!(!doomed.cuts("KUBE-SERVICES", "KUBE-MARK-MASQ"), "it goes with its chain");

        let doomed = Doomed::of(chains, own.into_iter().chain([("CNI-DN-1", "KUBE-MARK-MASQ")]));
        assert_eq!(doomed.chains.iter().collect::<Vec<_>>(), ["KUBE-SERVICES"]);
        assert_eq!(doomed.kept.iter().collect::<Vec<_>>(), ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"]);
        assert!(!doomed.cuts("POSTROUTING", "KUBE-POSTROUTING"));
    }
}
