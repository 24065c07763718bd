//! kube-proxy's tables of nftables, and its chains in those of `iptables-nft`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    ops::ControlFlow,
};

use super::doomed::{Doomed, TABLES};
use crate::kube_proxy::NFT_TABLE;
use crate::net::{
    pods::nftables::{
        CHAIN, CHAIN_NAME, EXPRESSION_DATA, EXPRESSION_NAME, EXPRESSIONS, GET_CHAIN, GET_RULE, TABLE,
        attributes, find, list, text,
    },
    untracked::{
        DELETE_TABLE, Message, NEW_CHAIN, NEW_RULE, NEW_TABLE, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE,
        attribute, batch_of, nested, number, open, talk,
    },
};

/// A table that keeps the kernel translating what it knows. That ends in a network namespace with the last chain of the type `nat`
/// of a family (`nf_nat_register_fn`), and with the last rule that uses connection tracking (`nf_ct_netns_get`). kube-proxy's may be the last.
pub(crate) const KEEPER: &str = "proxy-agent-nat";

/// A family that kube-proxy has tables of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NftFamily {
    /// `ip`.
    V4,
    /// `ip6`.
    V6,
}

impl NftFamily {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.number() == number)
    }
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "ip" } else { "ip6" })
    }
}

/// What there is of kube-proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A table of its own.
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
    Ok(tables.into_iter().filter_map(|((family, table), rules)| judge(family, table, rules)).collect())
}

fn judge(family: NftFamily, table: String, rules: Rules) -> Option<Found> {
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
            // First nothing leads there any more; then neither order nor number of the transactions matters.
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

fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// `chain nat { type nat hook postrouting priority srcnat; }`, with a rule that reads the state of connection tracking and does nothing
/// with it.
fn keeper() -> Vec<Message> {
    const POST_ROUTING: u32 = 4;
    const SOURCE_NAT: u32 = 100;
    const REGISTER: u32 = 1;
    const CT_STATE: u32 = 0;
    let table = attribute(TABLE, &name(KEEPER));
    let chain = b"nat\0";
    let hook = nested(4, &[number(1, POST_ROUTING), number(2, SOURCE_NAT)]);
    let data = nested(EXPRESSION_DATA, &[number(1, REGISTER), number(2, CT_STATE)]);
    let read_state = nested(1, &[attribute(EXPRESSION_NAME, b"ct\0"), data]);
    let new_chain = [table.clone(), attribute(CHAIN_NAME, chain), hook, attribute(7, b"nat\0")];
    let new_rule = [table.clone(), attribute(CHAIN, chain), nested(EXPRESSIONS, &[read_state])];
    vec![
        (NEW_TABLE, NLM_F_CREATE, table),
        (NEW_CHAIN, NLM_F_CREATE, new_chain.concat()),
        (NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, new_rule.concat()),
    ]
}

/// Is there a table that keeps translation working?
pub(crate) fn has_keeper(family: NftFamily) -> bool {
    let mut found = false;
    let listed = list(GET_CHAIN, |of, chain| {
        found |= of == family.number() && find(chain, TABLE).map(text).as_deref() == Some(KEEPER);
        ControlFlow::Continue(())
    });
    listed.is_ok() && found
}

/// Removes it. Connections that it was for are not translated any more, if no other table does for them what it did.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove_keeper(family: NftFamily) -> io::Result<()> {
    send(family, vec![(DELETE_TABLE, 0, attribute(TABLE, &name(KEEPER)))])
}

/// Sends messages, in transactions that fit into a socket's buffer.
fn send(family: NftFamily, messages: Vec<Message>) -> io::Result<()> {
    /// The default of `net.core.wmem_default` holds twice as much.
    const BYTES: usize = 64 << 10;
    /// Names are 128 bytes at most.
    const OF_MESSAGE: usize = 320;
    let socket = open()?;
    for part in messages.chunks(BYTES / OF_MESSAGE) {
        let mut part = part.to_vec();
        // The last one is acknowledged when all were done.
        if let Some((_, flags, _)) = part.last_mut() {
            *flags |= NLM_F_ACK;
        }
        talk(&socket, &batch_of(family.number(), &part))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let own = judge(family, "kube-proxy".into(), rules(&["services"], &[]));
        assert_eq!(own, Some(Found::Own { family, chains: 1, rules: 0 }));
        // Only tables that iptables has.
        assert_eq!(judge(family, "mine".into(), rules(&["KUBE-SERVICES"], &[])), None);
        assert_eq!(judge(family, "filter".into(), rules(&["KUBE-FIREWALL", "INPUT"], &[])), None);
        let jumps =
            [("OUTPUT", "KUBE-SERVICES"), ("KUBE-SERVICES", "KUBE-MARK-MASQ"), ("OUTPUT", "KUBE-FIREWALL")];
        let shared =
            judge(family, "nat".into(), rules(&["OUTPUT", "KUBE-SERVICES", "KUBE-MARK-MASQ"], &jumps));
        let Some(Found::Shared { doomed, jumps, .. }) = shared else { panic!("{shared:?}") };
        assert_eq!(doomed.chains.len(), 2);
        assert_eq!(jumps, [("OUTPUT".to_owned(), 1)]);
    }
}
