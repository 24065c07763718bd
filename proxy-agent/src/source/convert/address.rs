//! Addresses and prefixes as Kubernetes has always read them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// Parses an address as Kubernetes always did: leading zeros of IPv4 are decimal, v4-mapped IPv6 is IPv4.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    parse_unmapped(text).map(|address| address.to_canonical())
}

/// Parses a prefix as Kubernetes always did: as [`parse_ip`], with leading zeros in the length too. Space around it and
/// bits after the prefix are ignored.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let address = parse_unmapped(address)?;
    let length: u8 = digits(length)?.parse().ok()?;
    let net = IpNet::new(address, length).ok()?.trunc();
    match net.addr().to_canonical() {
        // The prefix of a v4-mapped address, if it is long enough to be IPv4 only.
        IpAddr::V4(mapped) if address.is_ipv6() => {
            Ipv4Net::new(mapped, length.checked_sub(MAPPED_BITS)?).ok().map(IpNet::V4)
        }
        _ => Some(net),
    }
}

/// Length of `::ffff:0:0/96`.
const MAPPED_BITS: u8 = 96;

fn parse_unmapped(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = digits(parts.next()?)?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// The text, if it is a number without a sign.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_sloppily() {
        let cases = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("172.30.0.041", Some("172.30.0.41")),
            ("010.000.0.08", Some("10.0.0.8")),
            ("::1", Some("::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.+1", None),
            ("10..0.1", None),
            ("fe80::1%eth0", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_ip(text), expected.map(|e| e.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn prefixes_are_read_sloppily() {
        let cases = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 10.0.0.0/8\t\n", Some("10.0.0.0/8")),
            ("203.0.113.000/025", Some("203.0.113.0/25")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/064", Some("fd00::/64")),
            ("::/0", Some("::/0")),
            ("::ffff:10.0.0.1/104", Some("10.0.0.0/8")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            ("10.0.0/8", None),
            ("10.0.0.0 /8", None),
            ("fd00::/129", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_cidr(text), expected.map(|e| e.parse().unwrap()), "{text:?}");
        }
    }
}
