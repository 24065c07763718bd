//! Redirecting rules of nftables in the network namespace that this thread is in. Those of `iptables-nft` are such, too.

use std::{collections::BTreeSet, fmt, io, ops::ControlFlow};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

// From `linux/netlink.h`, `linux/netfilter/nfnetlink.h`, `nf_tables.h` and `nf_tables_compat.h`.
const NLMSG_HEADER: usize = 16;
const NFGENMSG: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
pub(crate) const GET_CHAIN: u16 = 10 << 8 | 4;
pub(crate) const GET_RULE: u16 = 10 << 8 | 7;
/// Attribute of rules and chains.
pub(crate) const TABLE: u16 = 1;
/// Attribute of rules.
pub(crate) const CHAIN: u16 = 2;
/// Attribute of chains.
pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const EXPRESSIONS: u16 = 4;
pub(crate) const EXPRESSION_NAME: u16 = 1;
pub(crate) const EXPRESSION_DATA: u16 = 2;
const NAT_TYPE: u16 = 1;
const NAT_DESTINATION: [u8; 4] = [0, 0, 0, 1];
const TARGET_NAME: u16 = 1;

/// The first rule that changes where packets go; `None` if there is none, or no nftables. Such rules are allowed in chains of the
/// hooks prerouting and output only (`nft_nat_validate`, `nft_tproxy_validate`), so their chains need not be looked at.
///
/// # Errors
/// The kernel's.
pub(super) fn redirect() -> io::Result<Option<String>> {
    let mut found = None;
    list(GET_RULE, |_, rule| match redirecting(rule) {
        Some(place) => {
            found = Some(place.to_string());
            ControlFlow::Break(())
        }
        None => ControlFlow::Continue(()),
    })?;
    Ok(found)
}

/// A chain, or where a rule is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChainName {
    /// Its table.
    pub(crate) table: String,
    /// Its name.
    pub(crate) chain: String,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nftables, table {}, chain {}", self.table, self.chain)
    }
}

/// Where all rules are that change where packets go.
///
/// # Errors
/// The kernel's.
pub(crate) fn redirects() -> io::Result<BTreeSet<ChainName>> {
    let mut found = BTreeSet::new();
    list(GET_RULE, |_, rule| {
        found.extend(redirecting(rule));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// All chains.
///
/// # Errors
/// The kernel's.
pub(crate) fn chains() -> io::Result<BTreeSet<ChainName>> {
    let mut found = BTreeSet::new();
    list(GET_CHAIN, |_, chain| {
        found.insert(named(chain, CHAIN_NAME));
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Lists all objects of a kind, until `take` breaks off. It gets the family, as `NFPROTO_*`, and the attributes. Nothing, on a kernel
/// without nftables.
///
/// # Errors
/// The kernel's.
pub(crate) fn list(request: u16, mut take: impl FnMut(u8, &[u8]) -> ControlFlow<()>) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message_for(request), 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        let mut rest = answers.as_slice();
        while let Some((kind, payload, further)) = message(rest) {
            rest = further;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = payload.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
                    return match code.map(i32::saturating_abs) {
                        // A kernel without nftables.
                        Some(0 | libc::EINVAL | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => Ok(()),
                        code => Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EPROTO))),
                    };
                }
                _ => {
                    // The rest of the list goes with the socket.
                    let Some((header, attributes)) = payload.split_at_checked(NFGENMSG) else { continue };
                    if take(header[0], attributes).is_break() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

fn message_for(request: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((NLMSG_HEADER + NFGENMSG) as u32).to_ne_bytes());
    bytes.extend(request.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence number and port; then `struct nfgenmsg`: of all families.
    bytes.extend([0; 8 + NFGENMSG]);
    bytes
}

/// Type and contents of the first message, and the bytes behind it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let payload = bytes.get(NLMSG_HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Type and contents of each attribute.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are no part of the type.
    const TYPE: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & TYPE;
        let contents = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, contents))
    })
}

pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, contents)| contents)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// The table and the chain that a rule or a chain names.
fn named(message: &[u8], chain: u16) -> ChainName {
    let name = |kind| find(message, kind).map(text).unwrap_or_default();
    ChainName { table: name(TABLE), chain: name(chain) }
}

/// Where a rule is, if it redirects.
fn redirecting(rule: &[u8]) -> Option<ChainName> {
    let expressions = find(rule, EXPRESSIONS)?;
    let redirects = attributes(expressions).any(|(_, expression)| {
        let name = find(expression, EXPRESSION_NAME).map(text).unwrap_or_default();
        let data = find(expression, EXPRESSION_DATA).unwrap_or_default();
        match name.as_str() {
            "redir" | "tproxy" => true,
            "nat" => find(data, NAT_TYPE) == Some(&NAT_DESTINATION),
            "target" => {
                find(data, TARGET_NAME).map(text).is_some_and(|name| super::is_redirect_target(&name))
            }
            _ => false,
        }
    });
    redirects.then(|| named(rule, CHAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, contents: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + contents.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn rule(expressions: &[(&str, Vec<u8>)]) -> Vec<u8> {
        const NESTED: u16 = 0x8000;
        let one = |(name, data): &(&str, Vec<u8>)| {
            let name = attribute(EXPRESSION_NAME, format!("{name}\0").as_bytes());
            attribute(1 | NESTED, &[name, attribute(EXPRESSION_DATA | NESTED, data)].concat())
        };
        let expressions: Vec<u8> = expressions.iter().flat_map(one).collect();
        let names = [attribute(TABLE, b"mesh\0"), attribute(CHAIN, b"out\0")].concat();
        [names, attribute(EXPRESSIONS | NESTED, &expressions)].concat()
    }

    #[test]
    fn rules_that_change_where_packets_go() {
        let target = |name: &str| attribute(TARGET_NAME, format!("{name}\0").as_bytes());
        for (name, data, expected) in [
            ("redir", vec![], true),
            ("tproxy", vec![], true),
            ("nat", attribute(NAT_TYPE, &[0, 0, 0, 1]), true),
            ("nat", attribute(NAT_TYPE, &[0, 0, 0, 0]), false),
            ("masq", vec![], false),
            ("target", target("REDIRECT"), true),
            ("target", target("DNAT"), true),
            ("target", target("MASQUERADE"), false),
            ("counter", vec![], false),
        ] {
            let rule = rule(&[("cmp", vec![]), (name, data)]);
            let place = expected.then(|| "nftables, table mesh, chain out".to_owned());
            assert_eq!(redirecting(&rule).map(|place| place.to_string()), place, "{name}");
        }
        // Cut anywhere, it is read without a panic.
        let whole = rule(&[("redir", vec![])]);
        for length in 0..whole.len() {
            let _ = redirecting(&whole[..length]);
        }
    }
}
