//! The settings of the node's network, from the command line or a configuration file.

use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

/// One value of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum NodePortAddresses {
    /// The addresses of the Node object.
    Primary,
    /// Local addresses within a prefix.
    Within(IpNet),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "primary" {
            return Ok(Self::Primary);
        }
        text.parse().map(Self::Within).map_err(|_| format!("`{text}` is neither a CIDR nor `primary`"))
    }
}

impl TryFrom<String> for NodePortAddresses {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl std::fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Within(net) => net.fmt(f),
        }
    }
}

/// How pods are served: `--pod-datapath`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodDatapath {
    /// Socket hooks, or tc programs for those pods that need them.
    Auto,
    /// Socket hooks.
    Socket,
    /// tc programs on pod interfaces.
    Tc,
    /// Both.
    Both,
}
