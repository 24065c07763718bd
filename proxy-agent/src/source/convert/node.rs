//! This node.

use std::net::IpAddr;

use super::{Converted, label, parse_all, parse_ip};
use crate::{
    model::objects::{Change, Node},
    source::trimmed::{TrimmedNode, ZONE},
};

/// The cluster autoscaler is about to delete the Node (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts this node.
pub fn node(trimmed: &TrimmedNode) -> Converted {
    let listed = &trimmed.status.addresses;
    let of = |kind: &'static str| listed.iter().filter(move |address| address.r#type == kind);
    let texts = of("InternalIP").chain(of("ExternalIP")).map(|address| &address.address);
    let mut problems = Vec::new();
    let addresses: Vec<IpAddr> = parse_all(texts, parse_ip, ("address", "an IP address"), &mut problems);
    let is_tainted = trimmed.spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED);
    let node = Node {
        addresses,
        zone: label(&trimmed.metadata, ZONE).filter(|zone| !zone.is_empty()).map(Into::into),
        leaving: is_tainted || trimmed.metadata.deletion_timestamp.is_some(),
    };
    Converted { change: Change::Node(node), problems }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node_of(value: Value) -> (Node, Vec<String>) {
        let converted = node(&serde_json::from_value(value).unwrap());
        let Change::Node(node) = converted.change else { panic!() };
        (node, converted.problems)
    }

    #[test]
    fn a_node_gives_its_internal_addresses_first() {
        let (node, problems) = node_of(json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "10.2.0.1"}, {"type": "InternalIP", "address": "fd02::1"},
            {"type": "InternalIP", "address": "?"}, {"type": "ExternalIP", "address": "10.2.0.1"},
        ]}}));
        let addresses = ["10.2.0.1", "fd02::1", "192.0.2.1"].map(|a| a.parse().unwrap()).into();
        assert_eq!(node, Node { addresses, ..Node::default() });
        assert_eq!(problems, ["address `?` is not an IP address"]);
    }

    #[test]
    fn a_node_has_a_zone_and_may_be_leaving() {
        let tainted =
            |key: &str| json!({"spec": {"taints": [{"key": "other"}, {"key": key, "effect": "NoSchedule"}]}});
        let labelled = |zone: &str| json!({"metadata": {"labels": {ZONE: zone}}});
        let cases = [
            (json!({}), None, false),
            (labelled("a"), Some("a"), false),
            (labelled(""), None, false),
            (json!({"metadata": {"deletionTimestamp": "2024-05-06T07:08:09Z"}}), None, true),
            (tainted(TO_BE_DELETED), None, true),
            (tainted("node.kubernetes.io/unschedulable"), None, false),
            (json!({"spec": {"taints": null, "podCIDRs": ["10.244.0.0/24"]}}), None, false),
        ];
        for (value, zone, leaving) in cases {
            let (node, problems) = node_of(value.clone());
            assert_eq!((node.zone.as_deref(), node.leaving), (zone, leaving), "{value}");
            assert!(problems.is_empty(), "{problems:?}");
        }
    }
}
