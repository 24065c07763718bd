//! A node: its agent's state, and its tables.

use anyhow::{Context as _, Result, ensure};
use proxy_agent::{
    model::{
        objects::{Change, Kind},
        plan::{IpFamily, PortPlan},
        planner::plan_stored,
        store::Store,
    },
    source::{
        convert,
        trimmed::{TrimmedEndpointSlice, TrimmedNode, TrimmedService},
    },
};
use proxy_common::{
    V4, V6,
    decide::{NodeAddress, Route, RouteKind, memory::MemoryTables},
    layout::{
        config::Settings,
        device::{DEVICE_UPLINK, Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        flow::Mac,
    },
};
use proxy_conformance::{Case, HOSTS, Object, address, node_of};
use serde::de::DeserializeOwned;

use super::{
    family::CoreFamily,
    fill::{NodeIds, fill},
};

/// Index of the uplink.
pub(crate) const UPLINK: u32 = 2;
/// Index of the interface of the first pod; the others follow.
const FIRST_POD: u32 = 10;

/// A node.
pub(crate) struct Node {
    name: String,
    store: Store,
    ids: NodeIds,
    pub(crate) v4: MemoryTables<V4>,
    pub(crate) v6: MemoryTables<V6>,
}

/// Index of the interface of a pod, and cookie of its network namespace.
pub(crate) fn device_of(host: &str) -> u32 {
    let position = HOSTS.iter().position(|other| *other == host);
    FIRST_POD + position.unwrap_or_default() as u32
}

impl Node {
    /// A node without services.
    pub(crate) fn new(index: usize, case: &Case) -> Self {
        Self {
            name: format!("node-{}", index + 1),
            store: Store::new(),
            ids: NodeIds::default(),
            v4: tables(index, case),
            v6: tables(index, case),
        }
    }

    /// Takes in all objects there are, as a full list.
    pub(crate) fn apply(&mut self, objects: &[Object]) -> Result<()> {
        let mut changes = Vec::new();
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceCidr] {
            changes.push(Change::ListStart(kind));
        }
        for Object(object) in objects {
            let kind = object["kind"].as_str().context("an object without kind")?;
            changes.push(match kind {
                "Service" => convert::service(&parse::<TrimmedService>(object)?).change,
                "EndpointSlice" => convert::endpoint_slice(&parse::<TrimmedEndpointSlice>(object)?).change,
                "Node" if object["metadata"]["name"] != self.name.as_str() => continue,
                "Node" => convert::node(&parse::<TrimmedNode>(object)?).change,
                "ServiceCIDR" => continue,
                other => anyhow::bail!("what is a {other}?"),
            });
        }
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceCidr] {
            changes.push(Change::ListDone(kind));
        }
        changes.into_iter().for_each(|change| self.store.apply(change));
        ensure!(self.store.is_complete(), "the lists are not complete");

        let names: Vec<_> = self.store.all_services().map(|service| service.name.clone()).collect();
        let plans = names.iter().flat_map(|name| plan_stored(&self.store, name, &self.name).ports);
        let (v4, v6): (Vec<PortPlan>, Vec<_>) = plans.partition(|plan| plan.name.family == IpFamily::V4);
        self.ids.retain(&[v4.clone(), v6.clone()].concat());
        fill(&mut self.v4, &v4, &mut self.ids);
        fill(&mut self.v6, &v6, &mut self.ids);
        Ok(())
    }

    /// Advances the time.
    pub(crate) fn wait(&self, ticks: u32) {
        self.v4.now.set(self.v4.now.get() + ticks);
        self.v6.now.set(self.v6.now.get() + ticks);
    }
}

fn parse<T: DeserializeOwned>(object: &serde_json::Value) -> Result<T> {
    serde_json::from_value(object.clone()).with_context(|| object.to_string())
}

/// The tables of a node without services: its address, its devices, its routes.
fn tables<F: CoreFamily>(index: usize, case: &Case) -> MemoryTables<F> {
    let mut tables = MemoryTables::new(Settings {
        snat_first: 20_000,
        snat_last: 29_999,
        idle: 2500,
        snat_sources: 0,
        external_cluster_ips: false,
        reset_removed_tcp: false,
    });
    let is_ipv4 = F::ip(F::UNSPECIFIED).is_ipv4();
    let addr = |host: &str| F::address(address(host, is_ipv4)).unwrap_or(F::UNSPECIFIED);
    let own = format!("node-{}", index + 1);
    let route = |kind, ifindex, next_hop| Route {
        kind,
        ifindex,
        next_hop,
        names_next_hop: true,
        by_stack: false,
        from: Mac([1; 3]),
        to: Mac([2; 3]),
        mtu: 0,
    };

    tables.node_addresses.insert(addr(&own), NodeAddress(NODE_ADDR_NODEPORT | NODE_ADDR_SNAT));
    let mut uplink = Device { flags: DEVICE_UPLINK, ..Device::default() };
    uplink.snat_v4 = V4::address(address(&own, true)).unwrap_or_default();
    uplink.snat_v6 = V6::address(address(&own, false)).unwrap_or_default();
    tables.devices.insert(UPLINK, uplink);
    tables.routes.insert(addr(&own), route(RouteKind::Local, 1, addr(&own)));
    tables.default_route = route(RouteKind::Neighbour, UPLINK, addr("client"));
    for host in HOSTS.iter().filter(|host| node_of(host) == Some(index)) {
        let device = device_of(host);
        if host.starts_with("pod") {
            tables.devices.insert(device, Device::default());
            tables.routes.insert(addr(host), route(RouteKind::Neighbour, device, addr(host)));
        }
        tables.netns.insert(device.into(), addr(host));
    }
    // Stand for the whole range.
    let in_range = (0..16).filter_map(|n| F::address(case.ip_of(is_ipv4, n)));
    tables.service_addresses.extend(in_range);
    tables
}
