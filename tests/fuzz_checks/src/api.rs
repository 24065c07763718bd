//! Replies of the API server and the kernel.

use std::collections::HashMap;

use ipnet::IpNet;
use kube::core::ResourceExt as _;
use proxy_agent::{
    model::{
        changes::changes,
        objects::{Change, ObjectName},
        plan::{IpFamily, ServicePlan},
        planner::plan_stored,
        store::Store,
    },
    net::{
        conntrack::connections_of,
        sock_diag::{Transport, sockets_of},
    },
    source::{
        convert,
        trimmed::{TrimmedEndpointSlice, TrimmedNode, TrimmedService, TrimmedServiceCidr},
    },
};
use serde_json::Value;

/// Objects as JSON, one in each line, with their events: they are converted, stored and planned.
///
/// A line is a watch event (`type` and `object`) or an object, which is added.
pub fn objects(bytes: &[u8]) {
    let mut store = Store::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
        let is_deleted = value.get("type").is_some_and(|kind| kind == "DELETED");
        let object = value.get("object").unwrap_or(&value).clone();
        if let Some(change) = change(object, is_deleted) {
            store.apply(change);
        }
    }
    settle(&mut store);
}

fn change(object: Value, is_deleted: bool) -> Option<Change> {
    let kind = object.get("kind")?.as_str()?.to_owned();
    let converted = match kind.as_str() {
        "Service" => {
            let trimmed: TrimmedService = serde_json::from_value(object).ok()?;
            if is_deleted {
                return Some(Change::ServiceGone(convert::object_name(&trimmed.metadata)));
            }
            convert::service(&trimmed)
        }
        "EndpointSlice" => {
            let trimmed: TrimmedEndpointSlice = serde_json::from_value(object).ok()?;
            if is_deleted {
                return Some(Change::EndpointSliceGone(convert::object_name(&trimmed.metadata)));
            }
            convert::endpoint_slice(&trimmed)
        }
        "Node" => convert::node(&serde_json::from_value::<TrimmedNode>(object).ok()?),
        "ServiceCIDR" => {
            let trimmed: TrimmedServiceCidr = serde_json::from_value(object).ok()?;
            if is_deleted {
                return Some(Change::ServiceCidrGone(convert::service_cidr_name(&trimmed.name_any())));
            }
            convert::service_cidr(&trimmed)
        }
        _ => return None,
    };
    assert!(converted.problems.iter().all(|problem| !problem.is_empty()));
    Some(converted.change)
}

/// Plans the changes, and checks the properties of every plan.
pub(super) fn settle(store: &mut Store) {
    let mut before: HashMap<ObjectName, ServicePlan> = HashMap::new();
    for name in store.take_changed() {
        let plan = plan_stored(store, &name, "here");
        check(&plan);
        let old = before.entry(name).or_default();
        for change in changes(&old.ports, &plan.ports) {
            assert!(!change.to_string().is_empty());
        }
        *old = plan;
    }
    store.take_triggers();
    store.service_cidrs();
}

fn check(plan: &ServicePlan) {
    for port in &plan.ports {
        let family = port.name.family;
        for list in [&port.internal, &port.external, &port.cluster, &port.serving] {
            assert!(list.windows(2).all(|pair| pair[0] < pair[1]), "not sorted: {list:?}");
            assert!(list.iter().all(|address| IpFamily::of(&address.ip()) == family), "{list:?}");
            assert!(list.iter().all(|address| address.port() != 0), "port 0: {list:?}");
        }
        for used in [&port.internal, &port.external, &port.cluster] {
            assert!(used.iter().all(|address| port.serving.contains(address)), "{port:?}");
        }
        let is_ours = |net: &IpNet| IpFamily::of(&net.addr()) == family;
        assert!(port.sources.iter().flatten().all(is_ours), "{port:?}");
    }
}

/// An answer of the kernel's `sock_diag`, or of its connection tracking.
pub fn sock_diag(bytes: &[u8]) {
    for transport in [Transport::Tcp, Transport::Udp] {
        let _ = sockets_of(bytes, transport);
    }
    let _ = connections_of(bytes);
}
