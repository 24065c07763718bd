//! By which way a pod is served, from the facts of its network namespace. Pure.

use std::{fmt, time::Duration};

use serde::Serialize;

/// Kinds of interface behind which others may be: their packets are no socket's of the pod.
const TUNNELS: [&str; 18] = [
    "bridge",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "macvtap",
    "openvswitch",
    "ppp",
    "sit",
    "tun",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
    "xfrm",
];

/// How a pod reaches services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Its sockets are translated in `connect()` and `sendmsg()`.
    Sockets,
    /// Its packets are translated at its interface; its sockets are not.
    Packets,
}

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No reason against sockets.
    Plain,
    /// It redirects packets; where the rule is.
    Redirects(String),
    /// It has an interface of a tunnel or of a virtual machine; its name and kind.
    Tunnel(String, String),
    /// It forwards packets, and has another interface; its name.
    Forwards(String),
    /// Its interface has no address: another network stack has it.
    NoAddress,
    /// No process is in it, and none came: its processes are not in the host's control groups.
    NoProcess,
    /// No file for it was found.
    NotFound,
    /// Too young to decide.
    Young,
    /// Too young to decide, but packets served it before the agent was started.
    AsBefore,
}

/// The facts of a pod's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// A rule of nftables or iptables that redirects packets.
    pub redirect: Option<String>,
    /// Names and kinds of interfaces that are up, besides the loopback interface and the pod's own.
    pub interfaces: Vec<(String, String)>,
    /// `net.ipv4.ip_forward` or `net.ipv6.conf.all.forwarding`.
    pub forwards: bool,
    /// Whether it has an address that others may reach.
    pub has_address: bool,
    /// Whether a process is in it.
    pub has_process: bool,
}

impl Reason {
    /// The way that follows.
    pub fn way(&self) -> Way {
        match self {
            Self::Plain | Self::Young => Way::Sockets,
            Self::Redirects(_)
            | Self::Tunnel(..)
            | Self::Forwards(_)
            | Self::NoAddress
            | Self::NoProcess
            | Self::NotFound
            | Self::AsBefore => Way::Packets,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => write!(f, "sockets can serve it"),
            Self::Redirects(rule) => write!(f, "redirects packets itself ({rule})"),
            Self::Tunnel(name, kind) => write!(f, "has the interface {name} ({kind})"),
            Self::Forwards(name) => write!(f, "forwards packets, and has another interface ({name})"),
            Self::NoAddress => write!(f, "its interface has no address: a separate network stack"),
            Self::NoProcess => write!(f, "no process of the host is in its network namespace"),
            Self::NotFound => write!(f, "its network namespace was not found"),
            Self::Young => write!(f, "new: not judged yet"),
            Self::AsBefore => write!(f, "as before; not judged yet"),
        }
    }
}

/// How long a pod may be without process while it is made or removed.
pub(super) const WITHOUT_PROCESS: Duration = Duration::from_secs(3);
/// How long a pod with processes may be without address: runtimes start the first one when the interface has its address.
pub(super) const WITHOUT_ADDRESS: Duration = Duration::from_millis(500);

/// Assesses a pod. `lacks_for` is how long the namespace has been without address or process; `None` if that may only be because
/// the pod is being made or removed.
pub fn assess(evidence: &Evidence, lacks_for: Duration) -> Option<Reason> {
    if let Some(rule) = &evidence.redirect {
        return Some(Reason::Redirects(rule.clone()));
    }
    let tunnel = evidence.interfaces.iter().find(|(_, kind)| TUNNELS.contains(&kind.as_str()));
    if let Some((name, kind)) = tunnel {
        return Some(Reason::Tunnel(name.clone(), kind.clone()));
    }
    // Pods inherit `ip_forward` from the node (`devconf_inherit_init_net`): alone it shows nothing. A dummy leads nowhere.
    let other = evidence.interfaces.iter().find(|(_, kind)| kind != "dummy");
    if let Some((name, _)) = other.filter(|_| evidence.forwards) {
        return Some(Reason::Forwards(name.clone()));
    }
    match (evidence.has_address, evidence.has_process) {
        (true, true) => Some(Reason::Plain),
        (false, true) => (lacks_for >= WITHOUT_ADDRESS).then_some(Reason::NoAddress),
        (false, false) => (lacks_for >= WITHOUT_PROCESS).then_some(Reason::NoAddress),
        (true, false) => (lacks_for >= WITHOUT_PROCESS).then_some(Reason::NoProcess),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Evidence {
        Evidence { has_address: true, has_process: true, ..Evidence::default() }
    }

    fn with(name: &str, kind: &str, forwards: bool) -> Evidence {
        Evidence { interfaces: vec![(name.into(), kind.into())], forwards, ..plain() }
    }

    #[test]
    fn what_a_namespace_shows_decides() {
        const SHORT: Duration = Duration::from_millis(100);
        const LONG: Duration = WITHOUT_PROCESS;
        let tunnel = |name: &str, kind: &str| Some(Reason::Tunnel(name.into(), kind.into()));
        let redirects = Evidence { redirect: Some("nftables, table mesh".into()), ..plain() };
        for (what, evidence, lacks_for, expected) in [
            ("a plain pod", plain(), LONG, Some(Reason::Plain)),
            ("a new one", plain(), SHORT, Some(Reason::Plain)),
            (
                "forwarding inherited from the node",
                Evidence { forwards: true, ..plain() },
                LONG,
                Some(Reason::Plain),
            ),
            ("a mesh", redirects.clone(), LONG, Some(Reason::Redirects("nftables, table mesh".into()))),
            ("a mesh, at once", redirects, SHORT, Some(Reason::Redirects("nftables, table mesh".into()))),
            ("wireguard", with("wg0", "wireguard", false), SHORT, tunnel("wg0", "wireguard")),
            ("a virtual machine", with("tap0", "tun", false), SHORT, tunnel("tap0", "tun")),
            ("Kata with macvtap", with("tap0_kata", "macvtap", false), SHORT, tunnel("tap0_kata", "macvtap")),
            ("a second network", with("net1", "macvlan", false), LONG, Some(Reason::Plain)),
            (
                "a second network, forwarding",
                with("net1", "macvlan", true),
                LONG,
                Some(Reason::Forwards("net1".into())),
            ),
            ("an address on a dummy", with("dummy0", "dummy", true), LONG, Some(Reason::Plain)),
            ("gVisor", Evidence { has_address: false, ..plain() }, LONG, Some(Reason::NoAddress)),
            ("a pod without address yet", Evidence { has_address: false, ..plain() }, SHORT, None),
            ("a sandbox", Evidence { has_process: false, ..plain() }, LONG, Some(Reason::NoProcess)),
            ("a pod without process yet", Evidence { has_process: false, ..plain() }, SHORT, None),
        ] {
            assert_eq!(assess(&evidence, lacks_for), expected, "{what}");
        }
    }

    #[test]
    fn only_what_shows_nothing_is_served_by_sockets() {
        let packets = [
            Reason::Redirects(String::new()),
            Reason::Tunnel(String::new(), String::new()),
            Reason::Forwards(String::new()),
            Reason::NoAddress,
            Reason::NoProcess,
            Reason::NotFound,
            Reason::AsBefore,
        ];
        assert!(packets.iter().all(|reason| reason.way() == Way::Packets));
        assert!([Reason::Plain, Reason::Young].iter().all(|reason| reason.way() == Way::Sockets));
    }
}
