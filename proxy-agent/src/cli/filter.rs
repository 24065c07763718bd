//! Which rows of a table `debug` shows.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::Args;

/// By Service.
#[derive(Args, Clone, Debug, Default)]
pub struct ServiceFilter {
    /// Only of this Service, or of one port of it.
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]", value_parser = parse_service)]
    pub service: Option<String>,

    /// Only the first so many.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// By Service and endpoint.
#[derive(Args, Clone, Debug, Default)]
pub struct BackendFilter {
    /// By Service.
    #[command(flatten)]
    pub service: ServiceFilter,

    /// Only with this endpoint.
    #[arg(long, value_name = "IP[:PORT]")]
    pub backend: Option<BackendAddress>,
}

/// An endpoint, by its address alone or with its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendAddress {
    ip: IpAddr,
    port: Option<u16>,
}

impl BackendAddress {
    /// Whether it is this one.
    pub fn matches(&self, endpoint: SocketAddr) -> bool {
        self.ip == endpoint.ip() && self.port.is_none_or(|port| port == endpoint.port())
    }
}

impl FromStr for BackendAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip(), port: Some(address.port()) });
        }
        let ip = text.parse();
        let ip = ip.map_err(|_| format!("`{text}` is not an address like 10.244.0.5 or 10.244.0.5:8080"))?;
        Ok(Self { ip, port: None })
    }
}

pub(super) fn parse_service(text: &str) -> Result<String, String> {
    let is_whole =
        text.split_once('/').is_some_and(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    if is_whole { Ok(text.to_owned()) } else { Err(format!("`{text}` is not a Service like default/web")) }
}

impl ServiceFilter {
    /// Whether a service port, like `default/web:http`, is of the Service.
    pub fn matches(&self, name: Option<&str>) -> bool {
        is_of_service(self.service.as_deref(), name)
    }
}

/// Whether a service port, like `default/web:http`, is of the given Service or service port.
pub(crate) fn is_of_service(wanted: Option<&str>, name: Option<&str>) -> bool {
    let Some(wanted) = wanted else { return true };
    let rest = name.and_then(|name| name.strip_prefix(wanted));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_with_and_without_a_port() {
        let filter = |text: &str| ServiceFilter { service: Some(parse_service(text).unwrap()), limit: None };
        for (wanted, name, expected) in [
            ("default/web", Some("default/web:http"), true),
            ("default/web", Some("default/web"), true),
            ("default/web:http", Some("default/web:http"), true),
            ("default/web:http", Some("default/web:https"), false),
            ("default/web", Some("default/web-2:http"), false),
            ("default/web", Some("other/web:http"), false),
            ("default/web", None, false),
        ] {
            assert_eq!(filter(wanted).matches(name), expected, "{wanted} {name:?}");
        }
        assert!(ServiceFilter::default().matches(None));
        assert!(parse_service("web").is_err() && parse_service("/web").is_err());
    }

    #[test]
    fn endpoints_with_and_without_a_port() {
        for (wanted, endpoint, expected) in [
            ("10.0.0.1", "10.0.0.1:80", true),
            ("10.0.0.1:80", "10.0.0.1:80", true),
            ("10.0.0.1:81", "10.0.0.1:80", false),
            ("10.0.0.2", "10.0.0.1:80", false),
            ("fd00::1", "[fd00::1]:80", true),
            ("[fd00::1]:80", "[fd00::1]:80", true),
        ] {
            let address: BackendAddress = wanted.parse().unwrap();
            assert_eq!(address.matches(endpoint.parse().unwrap()), expected, "{wanted} {endpoint}");
        }
        assert!("web".parse::<BackendAddress>().is_err());
    }
}
