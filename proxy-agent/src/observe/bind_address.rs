//! Where servers listen, as kube-proxy's settings have it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

/// Address and port, of which either may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress {
    /// The address; without it the default's.
    pub ip: Option<IpAddr>,
    /// The port; without it the default's.
    pub port: Option<u16>,
}

impl BindAddress {
    /// Missing parts are taken from `default`.
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
