//! Values of flags and of fields of the configuration file.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

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

/// Where to listen, as kube-proxy's settings have it: address and port, of which either may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress {
    /// The address; without it the default's.
    pub ip: Option<IpAddr>,
    /// The port; without it the default's.
    pub port: Option<u16>,
}

impl BindAddress {
    /// What is left out is taken from `default`.
    pub fn or(self, default: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(default.ip()), self.port.unwrap_or(default.port()))
    }
}

impl FromStr for BindAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: Some(address.ip()), port: Some(address.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self { ip: Some(ip), port: None });
        }
        let port = |port: &str| port.parse::<u16>().ok();
        match text.rsplit_once(':').map(|(host, number)| (host, port(number))) {
            Some(("", Some(port))) => Ok(Self { ip: None, port: Some(port) }),
            Some(("localhost", Some(port))) => {
                Ok(Self { ip: Some(Ipv4Addr::LOCALHOST.into()), port: Some(port) })
            }
            _ => Err(format!("`{text}` is not an address with a port like 0.0.0.0:10256")),
        }
    }
}

/// A duration as Go writes it, like `1s`, `1h0m0s` or `500ms`. Not negative.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    // The library's parser panics at numbers out of range, and at a sign amid the text.
    const MAX_DIGITS: usize = 9;
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
    let in_range = !text.is_empty() && !text.contains(['-', '+']) && digits <= Some(MAX_DIGITS);
    in_range
        .then(|| text.parse::<kube::core::Duration>().ok())
        .flatten()
        .map(Into::into)
        .ok_or_else(|| format!("`{text}` is not a duration like 1s, 500ms or 1h0m0s"))
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortRange {
    /// Is the port in the range?
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports it has.
    pub fn count(&self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let range = Self { first: first.parse().ok()?, last: last.parse().ok()? };
            (range.first > 0 && range.first <= range.last).then_some(range)
        };
        parse().ok_or_else(|| format!("`{text}` is not a range of ports like 30000-32767"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges() {
        let range = |text: &str| text.parse::<PortRange>();
        for wrong in ["", "1", "0-5", "9-8", "1-70000", "a-b"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        for (text, count) in [("1-9", 9), ("9-9", 1), ("1-65535", 65_535)] {
            let range = range(text).unwrap();
            assert_eq!((range.to_string(), range.count()), (text.to_owned(), count));
        }
    }

    #[test]
    fn addresses_to_listen_at_may_be_incomplete() {
        let default = "127.0.0.1:10249".parse().unwrap();
        for (text, expected) in [
            ("0.0.0.0:9", "0.0.0.0:9"),
            ("10.0.0.1", "10.0.0.1:10249"),
            ("::", "[::]:10249"),
            ("[::1]", "[::1]:10249"),
            ("[fd00::1]:9", "[fd00::1]:9"),
            (":9", "127.0.0.1:9"),
            ("localhost:9", "127.0.0.1:9"),
        ] {
            let address: BindAddress = text.parse().unwrap();
            assert_eq!(address.or(default).to_string(), expected, "{text}");
        }
        for wrong in ["", "x", "host:9", "1.2.3.4:70000", ":", "1.2.3.4:"] {
            assert!(wrong.parse::<BindAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, expected) in [
            ("0s", Duration::ZERO),
            ("0", Duration::ZERO),
            ("500ms", Duration::from_millis(500)),
            ("1h0m1s", Duration::from_secs(3601)),
            ("1.5s", Duration::from_millis(1500)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for wrong in ["", "5", "-1s", "1s-1s", "99999999999999999999h", "1y", "NaNs", "infs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
