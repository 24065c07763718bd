//! A load balancer address that the router outside has a route for, to node-1, whose default route leads back to the router.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use proxy_harness::{
    cluster::{Cluster, Endpoint, Host},
    traffic::TARGET_PORT,
};

/// The address.
pub const BALANCER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

/// The port of the Service there.
pub const BALANCER_PORT: u16 = 443;

/// Writes the Service, of type LoadBalancer with one endpoint, routes the address to node-1, and counts in the router the packets sent to
/// it.
///
/// The router must not filter by source address (`rp_filter` 2 or 0): packets of a loop come back by another device.
pub fn route_balancer(cluster: &Cluster, endpoint: &Host) -> Result<()> {
    let Endpoint { v4, node, .. } = Endpoint::from(endpoint);
    let ports = |field: &str| {
        ["TCP", "UDP"]
            .map(|protocol| {
                format!("    - {{name: {}, protocol: {protocol}, {field}}}\n", protocol.to_lowercase())
            })
            .concat()
    };
    let text = format!(
        "apiVersion: v1
kind: Service
metadata: {{name: balanced, namespace: default}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.50
  clusterIPs: [10.96.0.50]
  ipFamilies: [IPv4]
  allocateLoadBalancerNodePorts: false
  ports:
{}status:
  loadBalancer:
    ingress:
      - ip: {BALANCER}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: balanced-1
  namespace: default
  labels: {{kubernetes.io/service-name: balanced}}
addressType: IPv4
ports:
{}endpoints:
  - addresses: [{v4}]
    nodeName: {node}
    conditions: {{ready: true}}
",
        ports(&format!("port: {BALANCER_PORT}, targetPort: {TARGET_PORT}")),
        ports(&format!("port: {TARGET_PORT}")),
    );
    cluster.manifests.write("balanced.yaml", &text)?;
    cluster.fabric.ip(&[format!("route add {BALANCER}/32 via {}", cluster.node(0)?.host.v4)])?;
    cluster.fabric.nft(&format!(
        "table ip loops {{
            chain forward {{
                type filter hook forward priority filter; policy accept;
                ip daddr {BALANCER} counter
            }}
        }}"
    ))?;
    Ok(())
}

/// How many packets to the address the router has forwarded.
pub fn packets_to_balancer(cluster: &Cluster) -> Result<u64> {
    let text = cluster.fabric.feed("nft", &["list", "table", "ip", "loops"], "")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).context("no counter")?.parse().context(text.clone())
}
