//! Keeps local sockets off ports that the data path uses: `ip_local_reserved_ports`.
//!
//! Reserved ports can still be bound on purpose; they are not given out by themselves. Without that, an answer
//! for a local socket could look like a packet of ours.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cli::PortRange;

const FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Adds ranges to what is reserved already.
pub fn reserve(ranges: &[PortRange]) -> Result<()> {
    let path = Path::new(FILE);
    let before = std::fs::read_to_string(path).with_context(|| format!("cannot read {FILE}"))?;
    let after = merged(before.trim(), ranges);
    if after != before.trim() {
        std::fs::write(path, &after).with_context(|| format!("cannot reserve ports {after} in {FILE}"))?;
    }
    Ok(())
}

fn merged(before: &str, ranges: &[PortRange]) -> String {
    let parse = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?))
    };
    let mut all: Vec<(u16, u16)> = before.split(',').filter_map(parse).collect();
    all.extend(ranges.iter().map(|range| (range.first, range.last)));
    all.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (first, last) in all {
        match merged.last_mut() {
            Some(previous) if first as u32 <= previous.1 as u32 + 1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let text = |&(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    merged.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_added_once() {
        let ours = [PortRange { first: 20_000, last: 29_999 }, PortRange { first: 30_000, last: 32_767 }];
        for (before, after) in [
            ("", "20000-32767"),
            ("20000-32767", "20000-32767"),
            ("8080,9000-9010", "8080,9000-9010,20000-32767"),
            ("25000-40000,50000", "20000-40000,50000"),
            ("65535", "20000-32767,65535"),
        ] {
            assert_eq!(merged(before, &ours), after, "{before:?}");
        }
    }
}
