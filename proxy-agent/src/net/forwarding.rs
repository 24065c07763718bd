//! Checks that the kernel forwards packets, those that programs hand to it included.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use tracing::info;

use crate::host;

const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

/// The switches that are off. One that is not there belongs to a family that the kernel does not have.
pub fn switched_off() -> impl Iterator<Item = &'static str> {
    SWITCHES.into_iter().filter(|file| fs::read_to_string(file).is_ok_and(|value| value.trim() == "0"))
}

/// Has the kernel take packets from the node's own addresses by the loopback interface, where programs hand them to the stack. Only the node
/// itself can send there.
///
/// # Errors
/// When that cannot be set.
pub fn accept_from_loopback() -> Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/conf/lo/accept_local";
    // Without IPv4 it is not there, and IPv6 has no such check.
    if !Path::new(SWITCH).exists() || fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    host::write(SWITCH, "1").with_context(|| format!("cannot write 1 to {SWITCH}"))?;
    info!(
        "net.ipv4.conf.lo.accept_local=1: packets that the kernel's stack sends for services come from there"
    );
    Ok(())
}
