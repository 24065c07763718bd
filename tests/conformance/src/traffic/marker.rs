//! A service that shows the progress of the agents: it comes after all others, in the folder and in the order of names.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use serde_json::json;

use super::super::{Object, TARGET, address, port};
use proxy_harness::cluster::{Cluster, until};

const NAMESPACE: &str = "zz-marker";
const ENDPOINT: &str = "pod-1a";
const DEADLINE: Duration = Duration::from_secs(20);

/// The service.
pub(super) struct Marker<'c> {
    pub(super) cluster: &'c Cluster,
}

fn ip(ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(10, 96, 255, 1).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 255, 1).into()
    }
}

fn port_of(round: usize) -> u16 {
    1000 + round as u16
}

impl Marker<'_> {
    /// Marks the round: only its port is served.
    pub(super) fn write(&self, round: usize) -> Result<()> {
        let slice = |ipv4| {
            json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": if ipv4 { "marker-v4" } else { "marker-v6" },
                    "namespace": NAMESPACE,
                    "labels": {"kubernetes.io/service-name": "marker"},
                },
                "addressType": if ipv4 { "IPv4" } else { "IPv6" },
                "ports": [port("tcp", "TCP", TARGET)],
                "endpoints": [{"addresses": [address(ENDPOINT, ipv4)]}],
            })
        };
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "marker", "namespace": NAMESPACE},
            "spec": {
                "clusterIP": ip(true),
                "clusterIPs": [ip(true), ip(false)],
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [port("tcp", "TCP", port_of(round))],
            },
        });
        super::write(self.cluster, NAMESPACE, &[service, slice(true), slice(false)].map(Object))
    }

    /// Waits until every node serves it.
    pub(super) fn wait(&self, round: usize) -> Result<()> {
        for node in &self.cluster.nodes {
            for ipv4 in [true, false] {
                let to = SocketAddr::new(ip(ipv4), port_of(round));
                let call = node.host.call(to).timeout(Duration::from_millis(300));
                until(DEADLINE, &format!("step {} on {}", round + 1, node.host.name), || {
                    Ok(call.once()?.answer.is_some().then_some(()))
                })?;
            }
        }
        Ok(())
    }
}
