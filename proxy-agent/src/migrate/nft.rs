//! kube-proxy's tables of nftables, and its chains in those of `iptables-nft`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::ControlFlow,
};

use super::doomed::{Doomed, TABLES};
use crate::kube_proxy::NFT_TABLE;
use crate::net::{
    nat_keeper::{NftFamily, keeper, name, send},
    pods::nftables::{
        CHAIN, CHAIN_NAME, EXPRESSION_DATA, EXPRESSION_NAME, EXPRESSIONS, GET_CHAIN, GET_RULE, TABLE,
        attributes, find, list, text,
    },
    untracked::{DELETE_TABLE, NEW_TABLE, attribute},
};

/// kube-proxy's tables and chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A table of kube-proxy alone.
    Own { family: NftFamily, chains: usize, rules: usize },
    /// Chains in a table of `iptables-nft`.
    Shared {
        family: NftFamily,
        table: String,
        doomed: Doomed,
        /// Rules of other chains that lead there: their chains and handles.
        jumps: Vec<(String, u64)>,
    },
}

/// A table.
#[derive(Debug, Default)]
struct Rules {
    chains: BTreeSet<String>,
    count: usize,
    /// From where to where, and the handle of the rule.
    jumps: Vec<(String, String, u64)>,
}

/// The tables of this network namespace that have something of kube-proxy.
///
/// # Errors
/// When they cannot be listed.
pub(super) fn find_all() -> io::Result<Vec<Found>> {
    let mut tables: BTreeMap<(NftFamily, String), Rules> = BTreeMap::new();
    let name = |message: &[u8], kind| find(message, kind).map(text).unwrap_or_default();
    list(GET_CHAIN, |family, chain| {
        if let Some(family) = NftFamily::of(family) {
            let rules = tables.entry((family, name(chain, TABLE))).or_default();
            rules.chains.insert(name(chain, CHAIN_NAME));
        }
        ControlFlow::Continue(())
    })?;
    list(GET_RULE, |family, rule| {
        if let Some(family) = NftFamily::of(family) {
            let rules = tables.entry((family, name(rule, TABLE))).or_default();
            rules.count += 1;
            if let (Some(to), Some(handle)) = (leads_to(rule), handle(rule)) {
                rules.jumps.push((name(rule, CHAIN), to, handle));
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(tables.into_iter().filter_map(|((family, table), rules)| assess(family, table, rules)).collect())
}

fn assess(family: NftFamily, table: String, rules: Rules) -> Option<Found> {
    if table == NFT_TABLE {
        return Some(Found::Own { family, chains: rules.chains.len(), rules: rules.count });
    }
    if !TABLES.contains(&table.as_str()) {
        return None;
    }
    let jumps = rules.jumps.iter().map(|(from, to, _)| (from.as_str(), to.as_str()));
    let doomed = Doomed::of(rules.chains.iter().map(String::as_str), jumps);
    let is_there = !doomed.chains.is_empty() || !doomed.kept.is_empty();
    let cut = rules.jumps.into_iter().filter(|(from, to, _)| doomed.cuts(from, to));
    let jumps = cut.map(|(from, _, handle)| (from, handle)).collect();
    is_there.then_some(Found::Shared { family, table, doomed, jumps })
}

/// The chain that a rule jumps or goes to.
fn leads_to(rule: &[u8]) -> Option<String> {
    // From `linux/netfilter/nf_tables.h`.
    const IMMEDIATE_DATA: u16 = 2;
    const DATA_VERDICT: u16 = 2;
    const VERDICT_CHAIN: u16 = 2;
    attributes(find(rule, EXPRESSIONS)?).find_map(|(_, expression)| {
        let name = find(expression, EXPRESSION_NAME).map(text)?;
        let data = (name == "immediate").then(|| find(expression, EXPRESSION_DATA))??;
        find(find(find(data, IMMEDIATE_DATA)?, DATA_VERDICT)?, VERDICT_CHAIN).map(text)
    })
}

/// `NFTA_RULE_HANDLE`.
const HANDLE: u16 = 3;

fn handle(rule: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(find(rule, HANDLE)?.try_into().ok()?))
}

const DELETE_CHAIN: u16 = NEW_TABLE | 5;
const DELETE_RULE: u16 = NEW_TABLE | 8;

/// Removes it.
///
/// # Errors
/// The kernel's.
pub(super) fn remove(found: &Found) -> io::Result<()> {
    match found {
        Found::Own { family, .. } => {
            let mut messages = keeper();
            messages.push((DELETE_TABLE, 0, attribute(TABLE, &name(NFT_TABLE))));
            send(*family, messages)
        }
        Found::Shared { family, table, doomed, jumps } => {
            let of_rule = |(chain, handle): &(String, u64)| {
                let handle = attribute(HANDLE, &handle.to_be_bytes());
                (
                    DELETE_RULE,
                    0,
                    [attribute(TABLE, &name(table)), attribute(CHAIN, &name(chain)), handle].concat(),
                )
            };
            // First remove all jumps to them; then neither order nor number of the transactions matters.
            send(*family, jumps.iter().map(of_rule).collect())?;
            let of_chain = |kind, attribute_of_chain| {
                let message = move |chain: &String| {
                    let attributes =
                        [attribute(TABLE, &name(table)), attribute(attribute_of_chain, &name(chain))];
                    (kind, 0, attributes.concat())
                };
                doomed.chains.iter().map(message).collect()
            };
            // Without a handle, all rules of a chain.
            send(*family, of_chain(DELETE_RULE, CHAIN))?;
            send(*family, of_chain(DELETE_CHAIN, CHAIN_NAME))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::untracked::{nested, number};

    fn rule(to: &str) -> Vec<u8> {
        let verdict = nested(2, &[number(1, -3_i32 as u32), attribute(2, &name(to))]);
        let data = nested(EXPRESSION_DATA, &[number(1, 0), nested(2, &[verdict])]);
        let jump = nested(1, &[attribute(EXPRESSION_NAME, b"immediate\0"), data]);
        let counter = nested(1, &[attribute(EXPRESSION_NAME, b"counter\0")]);
        let handle = attribute(HANDLE, &7_u64.to_be_bytes());
        let names = [attribute(TABLE, b"nat\0"), attribute(CHAIN, b"PREROUTING\0"), handle];
        [names.concat(), nested(EXPRESSIONS, &[counter, jump])].concat()
    }

    #[test]
    fn where_a_rule_leads_to() {
        let rule = rule("KUBE-SERVICES");
        assert_eq!(leads_to(&rule).as_deref(), Some("KUBE-SERVICES"));
        assert_eq!(handle(&rule), Some(7));
        for length in 0..rule.len() {
            let _ = (leads_to(&rule[..length]), handle(&rule[..length]));
        }
    }

    #[test]
    fn tables_of_kube_proxy_and_of_others() {
        let rules = |chains: &[&str], jumps: &[(&str, &str)]| Rules {
            chains: chains.iter().map(|chain| (*chain).to_owned()).collect(),
            count: jumps.len(),
            jumps: jumps.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned(), 1)).collect(),
        };
        let family = NftFamily::V4;
        let own = assess(family, "kube-proxy".into(), rules(&["services"], &[]));
        assert_eq!(own, Some(Found::Own { family, chains: 1, rules: 0 }));
        // Only tables that iptables has.
        assert_eq!(assess(family, "mine".into(), rules(&["KUBE-SERVICES"], &[])), None);
        assert_eq!(assess(family, "filter".into(), rules(&["KUBE-FIREWALL", "INPUT"], &[])), None);
        let jumps =
            [("OUTPUT", "KUBE-SERVICES"), ("KUBE-SERVICES", "KUBE-MARK-MASQ"), ("OUTPUT", "KUBE-FIREWALL")];
        let shared =
            assess(family, "nat".into(), rules(&["OUTPUT", "KUBE-SERVICES", "KUBE-MARK-MASQ"], &jumps));
        let Some(Found::Shared { doomed, jumps, .. }) = shared else { panic!("{shared:?}") };
        assert_eq!(doomed.chains.len(), 2);
        assert_eq!(jumps, [("OUTPUT".to_owned(), 1)]);
    }
}
