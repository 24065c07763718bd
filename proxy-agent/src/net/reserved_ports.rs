//! Keeps local sockets off ports that the data path uses: `ip_local_reserved_ports`.
//!
//! The kernel does not assign reserved ports; a program can still bind one explicitly. The data path looks for sockets before it uses
//! a port, so this only keeps the two out of each other's way.

use anyhow::{Context as _, Result};

use super::ports::PortRange;
use crate::host;

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Ports that must be left to be given to local sockets by themselves.
const LEFT: usize = 4_096;

/// Adds the ports of nodePorts and of source translation to those that are reserved already. Returns a warning if source ports were
/// left out because the node's own sockets would have too few.
///
/// # Errors
/// When the kernel's settings cannot be read or written.
pub fn reserve(nodeports: PortRange, snat: PortRange) -> Result<Option<String>> {
    let read = |path: &str| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let before = read(RESERVED)?;
    let before = before.trim();
    let local = local_range(&read(LOCAL)?);
    let (after, left_out) = plan(before, local, nodeports, snat);
    if after != before {
        host::write(RESERVED, &after)
            .with_context(|| format!("cannot reserve ports {after} in {RESERVED}"))?;
    }
    let warning = left_out.map(|shared| {
        format!(
            "--snat-ports {snat} has {shared} of the ports in {LOCAL} ({local}), and they cannot be reserved: the node's own \
             sockets would have too few. Connections of both may have to look longer for a free port; better choose others"
        )
    });
    Ok(warning)
}

/// The default is that of the kernel.
fn local_range(text: &str) -> PortRange {
    let mut ports = text.split_whitespace().filter_map(|port| port.parse().ok());
    match (ports.next(), ports.next()) {
        (Some(first), Some(last)) if first <= last => PortRange { first, last },
        _ => PortRange { first: 32_768, last: 60_999 },
    }
}

/// The ports to reserve; and how many of the source ports are left out, although the kernel assigns them to local sockets.
fn plan(before: &str, local: PortRange, nodeports: PortRange, snat: PortRange) -> (String, Option<usize>) {
    let all = merged(before, &[nodeports, snat]);
    let is_reserved =
        |ranges: &[PortRange], port| ranges.iter().any(|range: &PortRange| range.contains(port));
    if (local.first..=local.last).filter(|port| !is_reserved(&all, *port)).count() >= LEFT {
        return (text(&all), None);
    }
    let below = snat.first..snat.last.saturating_add(1).min(local.first);
    let above = snat.first.max(local.last.saturating_add(1))..=snat.last;
    let mut ranges = vec![nodeports];
    if !below.is_empty() {
        ranges.push(PortRange { first: below.start, last: below.end - 1 });
    }
    if !above.is_empty() && *above.start() > local.last {
        ranges.push(PortRange { first: *above.start(), last: *above.end() });
    }
    let reserved = merged(before, &ranges);
    let shared =
        (local.first..=local.last).filter(|port| snat.contains(*port) && !is_reserved(&reserved, *port));
    let shared = shared.count();
    (text(&reserved), (shared > 0).then_some(shared))
}

fn merged(before: &str, ranges: &[PortRange]) -> Vec<PortRange> {
    let parse = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
    };
    let mut all: Vec<PortRange> = before.split(',').filter_map(parse).collect();
    all.extend(ranges);
    all.sort_unstable_by_key(|range| (range.first, range.last));
    let mut merged: Vec<PortRange> = Vec::new();
    for range in all {
        match merged.last_mut() {
            Some(previous) if u32::from(range.first) <= u32::from(previous.last) + 1 => {
                previous.last = previous.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn text(ranges: &[PortRange]) -> String {
    let text =
        |range: &PortRange| if range.count() == 1 { range.first.to_string() } else { range.to_string() };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_added_once() {
        for (before, after) in [
            ("", "20000-32767"),
            ("20000-32767", "20000-32767"),
            ("8080,9000-9010", "8080,9000-9010,20000-32767"),
            ("25000-40000,50000", "20000-40000,50000"),
            ("65535", "20000-32767,65535"),
        ] {
            let planned = plan(before, range("32768-60999"), range("30000-32767"), range("20000-29999"));
            assert_eq!(planned, (after.to_owned(), None), "{before:?}");
        }
    }

    #[test]
    fn sockets_keep_enough_ports() {
        for (local, snat, after, left_out) in [
            ("1024-65000", "1024-29999", "1024-32767", None),
            // The same ports for both.
            ("1024-29999", "1024-29999", "30000-32767", Some(28_976)),
            ("10000-34000", "1024-29999", "1024-9999,30000-32767", Some(20_000)),
            ("1024-20000", "18000-29999", "18000-32767", None),
            ("1024-4000", "3000-65535", "4001-65535", Some(1_001)),
            ("60000-65535", "50000-65535", "30000-32767,50000-59999", Some(5_536)),
            // Few, but none of ours.
            ("60000-61000", "1024-29999", "1024-32767", None),
        ] {
            let planned = plan("", range(local), range("30000-32767"), range(snat));
            assert_eq!(planned, (after.to_owned(), left_out), "{local} {snat}");
        }
        assert_eq!(local_range("32768\t60999\n"), range("32768-60999"));
        assert_eq!(local_range(""), range("32768-60999"));
    }
}
