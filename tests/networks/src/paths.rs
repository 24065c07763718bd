//! The paths through a service, and the transfers that must work over each.

use std::{env, fmt, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::{LOCAL, Network, REMOTE, SETTLED, Shape, TARGET_PORT, sctp};
use proxy_harness::{
    cluster::{Host, PathMtu, until},
    traffic::cluster_ip,
};

/// For a request. The processor may be an emulated one.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// For all bytes of a connection. Links that lose and reorder take their time.
pub(super) const TRANSFER: Duration = Duration::from_secs(40);
/// Datagrams, in bytes: the last one takes several fragments on every link.
const DATAGRAMS: [usize; 2] = [1_200, 9_000];
/// The first may be lost on each link whose MTU must be learnt, in each direction; and links may lose some.
const ATTEMPTS: usize = 5;
/// For one of them.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(1_500);
/// Bytes over a connection in each direction. The environment can reduce it: emulated processors take their time.
const BYTES: u64 = 20_000_000;
const BYTES_VARIABLE: &str = "PROXY_AGENT_NETWORKS_BYTES";

/// The client of a service, the address it uses, and where its endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// A pod, by the cluster IP; the endpoint is on the other node.
    Pod,
    /// A process of the node, by the cluster IP; the endpoint is on the other node.
    Node,
    /// A client outside, by the nodePort of the endpoint's node.
    Local,
    /// A client outside, by the nodePort of a node; the endpoint is on the other one.
    Remote,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pod, Self::Node, Self::Local, Self::Remote];
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Node => "node",
            Self::Local => "nodePort-local",
            Self::Remote => "nodePort-remote",
        })
    }
}

impl Network {
    /// The client, the address that it uses, and the pod that must answer.
    fn path(&self, shape: &Shape, path: Path, is_ipv4: bool) -> Result<(&Host, SocketAddr, &Host)> {
        let cluster = &self.cluster;
        let client = match path {
            Path::Pod => cluster.pod("pod-1a")?,
            Path::Node => &cluster.node(0)?.host,
            Path::Local | Path::Remote => &cluster.client,
        };
        let node = shape.node_address(is_ipv4);
        let (target, server) = match path {
            Path::Pod | Path::Node => ((cluster_ip(REMOTE.0, is_ipv4), 80), "pod-2a"),
            Path::Local => ((node, LOCAL.1), "pod-1a"),
            Path::Remote => ((node, REMOTE.1), "pod-2a"),
        };
        Ok((client, target.into(), cluster.pod(server)?))
    }

    /// A user's view of the service: connections, bytes, datagrams.
    pub(super) fn try_path(&self, shape: &Shape, path: Path, is_ipv4: bool) -> Result<()> {
        let (client, target, server) = self.path(shape, path, is_ipv4)?;
        if shape.is_sctp {
            return sctp::exchange(client, target, server, TARGET_PORT).context("SCTP");
        }
        let call = client.call(target).timeout(PATIENCE);
        // The agents follow the network's change: this may take a moment, and once it works nothing may be lost.
        let mut last = String::new();
        until(SETTLED, "a connection", || {
            let reply = call.once()?;
            let is_right = reply.answer.as_ref().is_some_and(|answer| answer.server == server.name);
            last = reply.error.unwrap_or_else(|| "answered by another".to_owned());
            Ok((is_right && reply.peer == Some(target)).then_some(()))
        })
        .map_err(|_| anyhow::anyhow!("connect: {last}"))?;
        let bytes = env::var(BYTES_VARIABLE).map_or(Ok(BYTES), |bytes| bytes.parse())?;
        let report = call.bulk_within(bytes, TRANSFER).with_context(|| format!("{bytes} bytes over TCP"))?;
        ensure!(report.bytes == bytes && report.server == server.name, "{report:?}");
        for size in DATAGRAMS {
            let error = datagram(client, target, server, size)?;
            let Some(error) = error else { continue };
            // Rule out a fault of the network: from inside, the endpoint can be reached directly.
            let direct = (server.address_like(target.ip()), TARGET_PORT).into();
            let is_inside = matches!(path, Path::Pod | Path::Node);
            let is_networks = is_inside && datagram(client, direct, server, size)?.is_some();
            let also = if is_networks { ", and so it is without a service" } else { "" };
            bail!("datagram of {size} bytes: {error}{also}");
        }
        Ok(())
    }
}

/// Sends a datagram that the server must answer; returns the failure.
fn datagram(client: &Host, target: SocketAddr, server: &Host, size: usize) -> Result<Option<String>> {
    let call = client.call(target).size(size).timeout(DATAGRAM_PATIENCE);
    let reply = call.datagram(PathMtu::Want, ATTEMPTS)?;
    let is_right = reply.answer.as_ref().is_some_and(|answer| answer.server == server.name)
        && reply.peer == Some(target);
    Ok((!is_right).then(|| reply.error.unwrap_or_else(|| "answered by another".to_owned())))
}
