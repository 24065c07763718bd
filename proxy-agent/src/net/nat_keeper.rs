//! The table `proxy-agent-nat`, which keeps the kernel translating known connections when kube-proxy's rules go.

use std::{fmt, io, ops::ControlFlow};

use super::{
    pods::nftables::{
        CHAIN, CHAIN_NAME, EXPRESSION_DATA, EXPRESSION_NAME, EXPRESSIONS, GET_CHAIN, TABLE, find, list, text,
    },
    untracked::{
        DELETE_TABLE, Message, NEW_CHAIN, NEW_RULE, NEW_TABLE, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE,
        attribute, batch_of, nested, number, open, talk,
    },
};

/// A table that keeps the kernel translating known connections. Translation ends in a network namespace with the last chain of the type
/// `nat` of a family (`nf_nat_register_fn`), and with the last rule that uses connection tracking (`nf_ct_netns_get`). kube-proxy's may
/// be the last.
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

    pub(crate) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.number() == number)
    }
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "ip" } else { "ip6" })
    }
}

/// A name as the kernel reads it.
pub(crate) fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// `chain nat { type nat hook postrouting priority srcnat; }`, with a rule that reads the state of connection tracking and does nothing
/// with it.
pub(crate) fn keeper() -> Vec<Message> {
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

/// Whether the table that keeps translation working exists.
pub(crate) fn has_keeper(family: NftFamily) -> bool {
    let mut found = false;
    let listed = list(GET_CHAIN, |of, chain| {
        found |= of == family.number() && find(chain, TABLE).map(text).as_deref() == Some(KEEPER);
        ControlFlow::Continue(())
    });
    listed.is_ok() && found
}

/// Removes it. Its connections are not translated any more, if no other table keeps translation working.
///
/// # Errors
/// The kernel's.
pub(crate) fn remove_keeper(family: NftFamily) -> io::Result<()> {
    send(family, vec![(DELETE_TABLE, 0, attribute(TABLE, &name(KEEPER)))])
}

/// Sends messages, in transactions that fit into a socket's buffer.
pub(crate) fn send(family: NftFamily, messages: Vec<Message>) -> io::Result<()> {
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
