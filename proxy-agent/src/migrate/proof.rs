//! Checks that the agent serves this node, before anything of kube-proxy is removed, and after.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cli::MigrateArgs, datapath::pins::Pins, debug::services::tcp_cluster_ips, observe::status::Status, status,
};

/// How many Services are tried: the first that answers is enough.
const ATTEMPTS: usize = 5;
/// How long each may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A check, and its result.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) what: &'static str,
    pub(super) result: Result<String>,
}

/// Makes all checks.
pub(super) async fn all(args: &MigrateArgs) -> Vec<Proof> {
    let synced = status::ask(args.metrics_address).await.and_then(|status| assess(&status));
    vec![
        Proof { what: "agent synced", result: synced },
        Proof { what: "a connection", result: connection(&Pins::new(&args.pins.bpffs)) },
    ]
}

/// Whether the running agent reports that everything is done.
fn assess(status: &Status) -> Result<String> {
    ensure!(status.ready, "it reports that it is not ready: {}", status.problems.join("; "));
    let unsynced: Vec<&str> =
        status.watches.iter().filter(|watch| !watch.synced).map(|watch| watch.name.as_str()).collect();
    ensure!(unsynced.is_empty(), "these are not listed completely: {}", unsynced.join(", "));
    let services = &status.services;
    ensure!(services.last_applied.is_some(), "no Services were applied since it started");
    ensure!(services.failed == 0, "{} Services are not programmed as they should be", services.failed);
    ensure!(status.missing_hooks == 0, "{} programs are not attached", status.missing_hooks);
    ensure!(!status.hooks.is_empty(), "no programs are attached");
    Ok(format!(
        "pid {}, {} service ports, {} programs attached",
        status.pid,
        services.ports,
        status.hooks.len()
    ))
}

/// Connects to a Service as any process of the node, and looks in the kernel whether a socket hook translated it: then the socket's
/// peer is an endpoint. With rules of the kernel it would be the Service's address.
fn connection(pins: &Pins) -> Result<String> {
    let mut services = tcp_cluster_ips(pins).context("the maps cannot be read")?;
    ensure!(!services.is_empty(), "no Service has endpoints to connect to");
    // Every node has it, and a connection that sends nothing does it no harm.
    services.sort_by_key(|(name, _)| !name.starts_with("default/kubernetes:"));
    let mut failures = Vec::new();
    for (name, address) in services.into_iter().take(ATTEMPTS) {
        match attempt(address) {
            Ok(peer) => return Ok(format!("to {name} at {address} came to {peer}")),
            Err(error) => failures.push(format!("{name} at {address}: {error:#}")),
        }
    }
    bail!("{}", failures.join("; "))
}

fn attempt(to: SocketAddr) -> Result<SocketAddr> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    let own = stream.local_addr()?;
    let peer = peer_of(own)?;
    ensure!(peer != to, "connected, but not by the agent's programs");
    Ok(peer)
}

/// The kernel's peer of the connected socket at an address. `getpeername()` returns the one that the process requested.
fn peer_of(own: SocketAddr) -> Result<SocketAddr> {
    let sockets = if own.is_ipv4() { procfs::net::tcp() } else { procfs::net::tcp6() };
    let socket = sockets?.into_iter().find(|socket| socket.local_address == own);
    Ok(socket.context("the kernel does not list the socket")?.remote_address)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_peer_of_a_socket() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let to = listener.local_addr().unwrap();
            let stream = TcpStream::connect(to).unwrap();
            assert_eq!(peer_of(stream.local_addr().unwrap()).unwrap(), to);
            // Nothing translates here.
            assert!(attempt(to).is_err_and(|error| error.to_string().contains("not by the agent")));
        }
    }
}
