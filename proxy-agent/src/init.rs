//! `--init-only`: the work that takes more privileges than serving, for an init container that has them.

use anyhow::{Result, bail};

use crate::{
    config::Loaded,
    datapath::pins::Pins,
    net::{conntrack_sysctls::Outcome, reserved_ports},
};

/// Mounts the bpf file system, reserves ports and sets the kernel's connection tracking; prints what it did.
///
/// # Errors
/// When something of it could not be done. The rest is.
pub fn run(loaded: &Loaded) -> Result<()> {
    let settings = &loaded.settings;
    let mut failed = Vec::new();
    match Pins::new(&settings.bpffs).create() {
        Ok(()) => println!("{}: on a bpf file system", settings.bpffs.display()),
        Err(error) => failed.push(format!("{error:#}")),
    }
    match reserved_ports::reserve(settings.nodeport_range, settings.snat_ports) {
        Ok(None) => println!("ports: {} and {} are reserved", settings.nodeport_range, settings.snat_ports),
        Ok(Some(warning)) => println!("ports: {warning}"),
        Err(error) => failed.push(format!("{error:#}")),
    }
    let Outcome { is_loaded, changed, of_host, failed: not_set, .. } = settings.conntrack.apply();
    match (is_loaded, changed.is_empty()) {
        (false, _) => println!("conntrack: not loaded; the agent sets it when it is"),
        (true, true) => println!("conntrack: nothing to change"),
        (true, false) => println!("conntrack: {}", changed.join("; ")),
    }
    if !of_host.is_empty() {
        println!("conntrack: {}: only the host's first network namespace can set it", of_host.join("; "));
    }
    failed.extend(not_set.into_iter().map(|failure| format!("conntrack: {failure}")));
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}
