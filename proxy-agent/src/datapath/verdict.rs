//! The meaning of the programs' decisions.

use proxy_common::layout::{
    counter::Counter,
    event::{Decision, TRANSLATED},
};

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MonitorVerdict {
    /// A new flow, or a socket that got an endpoint.
    Translated,
    /// Rejected: the client gets an error that nothing listens, or that access is denied.
    Rejected,
    /// Dropped.
    Dropped,
    /// A TCP connection was reset.
    Reset,
    /// A ping of a cluster IP was answered.
    Answered,
}

/// The counter of this decision; `None` if it is a translation.
pub(crate) fn counter(code: Decision) -> Option<Counter> {
    Counter::ALL.get(usize::from(code)).copied()
}

/// The meaning of a decision; `None` if nothing was decided: the packet passes as if no proxy ran.
pub(crate) fn verdict(code: Decision, is_socket: bool) -> Option<MonitorVerdict> {
    if code == TRANSLATED {
        return Some(MonitorVerdict::Translated);
    }
    match counter(code)? {
        Counter::ReplyToNode => None,
        Counter::NoEndpoints | Counter::UndefinedPort => Some(MonitorVerdict::Rejected),
        Counter::FlowReset | Counter::ConnectionUnknown => Some(MonitorVerdict::Reset),
        Counter::EchoReply => Some(MonitorVerdict::Answered),
        _ if is_socket => Some(MonitorVerdict::Rejected),
        _ => Some(MonitorVerdict::Dropped),
    }
}

/// One bit for each decision that may mean one of these; all if there are none.
pub(crate) fn mask(wanted: &[MonitorVerdict]) -> u64 {
    let is_wanted = |code: Decision| {
        [false, true]
            .into_iter()
            .filter_map(|is_socket| verdict(code, is_socket))
            .any(|verdict| wanted.is_empty() || wanted.contains(&verdict))
    };
    (0..=TRANSLATED).filter(|code| is_wanted(*code)).fold(0, |mask, code| mask | 1 << code)
}

/// The text in arguments.
pub(crate) fn text(verdict: MonitorVerdict) -> &'static str {
    match verdict {
        MonitorVerdict::Translated => "translated",
        MonitorVerdict::Rejected => "rejected",
        MonitorVerdict::Dropped => "dropped",
        MonitorVerdict::Reset => "reset",
        MonitorVerdict::Answered => "answered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_what_is_asked_for() {
        let bit = |counter: Counter| 1u64 << counter as u8;
        let all = mask(&[]);
        assert!(all & 1 << TRANSLATED != 0 && all & bit(Counter::NoRoute) != 0);
        assert_eq!(all & bit(Counter::ReplyToNode), 0, "nothing is decided");
        assert_eq!(mask(&[MonitorVerdict::Translated]), 1 << TRANSLATED);
        let dropped = mask(&[MonitorVerdict::Dropped]);
        assert_eq!(dropped & (1 << TRANSLATED | bit(Counter::NoEndpoints)), 0);
        let no_local = bit(Counter::NoLocalEndpoints);
        // Packets are dropped, sockets rejected.
        assert!(dropped & no_local != 0 && mask(&[MonitorVerdict::Rejected]) & no_local != 0);
    }
}
