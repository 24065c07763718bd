//! The conformance table: the duties of a Service proxy, rule by rule.
//!
//! Every rule with steps is run twice, for each family: on the pure decision core, and as real traffic in a cluster of
//! namespaces. `docs/conformance.md` is written from the table.

mod addresses;
mod affinity;
mod case;
mod changes;
mod dispatch;
mod document;
mod e2e;
mod endpoints;
mod protocols;
mod ranges;
mod rejects;
mod rule;
mod services;
mod slices;
mod step;
mod surface;
mod topology;
mod traffic;
mod watch;

use serde_json::json;

pub use case::{
    Case, EndpointText, HOSTS, NODES, PORT, SERVICE_CIDRS, TARGET, TARGETS, ZONES, address, dying, entry,
    node_of, port, ready, routes, terminating, unready,
};
pub use document::document;
pub use e2e::{E2E, E2eTest, Proven};
pub use rule::{Proof, Rule, Topic};
pub use step::{Expect, Object, Probe, Protocol, Source, Step};
pub use traffic::run;

/// All rules, by topic.
pub fn rules() -> Vec<Rule> {
    let parts = [
        watch::RULES,
        services::RULES,
        addresses::RULES,
        slices::RULES,
        endpoints::RULES,
        topology::RULES,
        rejects::RULES,
        ranges::RULES,
        dispatch::RULES,
        affinity::RULES,
        changes::RULES,
        protocols::RULES,
        surface::RULES,
    ];
    parts.concat()
}

/// Every rule in each family: its addresses are no other's.
pub fn cases() -> Vec<(Rule, Case)> {
    let numbered = (1..).zip(rules());
    numbered
        .flat_map(|(number, rule)| [true, false].map(|ipv4| (rule, Case { number, id: rule.id, ipv4 })))
        .collect()
}

/// The objects that all rules share: the nodes with their zones, and the ranges of service addresses.
pub fn shared_objects() -> Vec<Object> {
    let node = |index: usize| {
        let name = format!("node-{}", index + 1);
        let addresses =
            [true, false].map(|ipv4| json!({"type": "InternalIP", "address": address(&name, ipv4)}));
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": ZONES[index]}},
            "status": {"addresses": addresses},
        })
    };
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": SERVICE_CIDRS},
    });
    (0..NODES).map(node).chain([cidr]).map(Object).collect()
}
