//! How much of a node's maps one Service may take.
//!
//! Whoever may create a Service decides how many ports, endpoints and source ranges it has, on every node. What is beyond these bounds is left
//! out, always the same part of it, and told. Source ranges that are left out keep their clients out.

use std::{collections::BTreeSet, net::SocketAddr};

use super::plan::{Endpoints, PortPlan, ServicePlan};

/// Ports of a Service, each counted once per family.
pub const PORTS: usize = 4096;
/// Endpoints of a Service, counted once per port and family: 5,000 for each of 50 ports, all for one port.
pub const ENDPOINTS: usize = 1 << 18;
/// Addresses and node ports of a Service, counted once per port and family.
pub const FRONTENDS: usize = 1 << 16;
/// Source ranges of a Service, counted once per port and family.
pub const SOURCE_RANGES: usize = 1 << 16;

/// Leaves out of a plan what is beyond the bounds; says what that is.
pub fn fit(plan: &mut ServicePlan) -> Option<String> {
    let mut excess = Vec::new();
    let ports = plan.ports.len();
    if ports > PORTS {
        plan.ports.truncate(PORTS);
        excess.push(format!("{} of {ports} ports", ports - PORTS));
    }
    // All ports of a Service have the same share: each as much as it would have in any order.
    let share = |budget: usize| budget / plan.ports.len().max(1);
    let (endpoints, frontends, ranges) = (share(ENDPOINTS), share(FRONTENDS), share(SOURCE_RANGES));
    for port in &mut plan.ports {
        let name = port.name.clone();
        let mut beyond = |count: usize, share: usize, what: &str| {
            if count > share {
                excess.push(format!("{} of {count} {what} of port {name}", count - share));
            }
            count > share
        };
        if beyond(port.serving.len(), endpoints, "endpoints") {
            keep_endpoints(port, endpoints);
        }
        if beyond(port.frontends.len(), frontends, "addresses") {
            port.frontends.truncate(frontends);
        }
        if let Some(sources) = &mut port.sources
            && beyond(sources.len(), ranges, "source ranges")
        {
            sources.truncate(ranges);
        }
    }
    let more = excess.len().saturating_sub(SHOWN);
    excess.truncate(SHOWN);
    if more > 0 {
        excess.push(format!("the same of {more} more ports"));
    }
    (!excess.is_empty()).then(|| format!("more than a Service may have: left out are {}", excess.join(", ")))
}

/// Ports that are named in a text at most.
const SHOWN: usize = 3;

/// Keeps so many endpoints: those that traffic policies choose first, then those that get new connections.
fn keep_endpoints(port: &mut PortPlan, count: usize) {
    let mut lists = [&port.internal, &port.external, &port.cluster, &port.serving];
    lists.sort_by_key(|list| list.len());
    let mut kept: BTreeSet<SocketAddr> = BTreeSet::new();
    for endpoint in lists.into_iter().flat_map(|list| list.iter()) {
        if kept.len() == count {
            break;
        }
        kept.insert(*endpoint);
    }
    let keep = |list: &Endpoints| list.iter().filter(|endpoint| kept.contains(endpoint)).copied().collect();
    for list in [&mut port.internal, &mut port.external, &mut port.cluster, &mut port.serving] {
        *list = keep(list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        objects::{ObjectName, Protocol},
        plan::{Frontend, IpFamily, Places, PortName},
    };

    fn endpoints(count: u32) -> Endpoints {
        (0..count).map(|number| SocketAddr::new(std::net::Ipv4Addr::from(number).into(), 80)).collect()
    }

    fn port(number: usize, count: u32) -> PortPlan {
        let all = endpoints(count);
        PortPlan {
            name: PortName {
                service: ObjectName::new("default", "web"),
                port: number.to_string().into(),
                protocol: Protocol::Tcp,
                family: IpFamily::V4,
            },
            frontends: vec![Frontend::NodePort(30_000)],
            internal: all.clone(),
            external: all.iter().rev().take(1).copied().collect(),
            cluster: all.clone(),
            serving: all,
            places: Places::default(),
            affinity: None,
            sources: None,
        }
    }

    #[test]
    fn what_is_usual_fits() {
        let mut plan =
            ServicePlan { ports: (0..50).map(|number| port(number, 5000)).collect(), ..Default::default() };
        plan.ports[0].sources = Some(vec!["10.0.0.0/8".parse().unwrap(); 1000]);
        let before = plan.clone();
        assert_eq!(fit(&mut plan), None);
        assert_eq!(plan, before);
        let mut plan = ServicePlan { ports: vec![port(0, 100)], ..Default::default() };
        plan.ports[0].sources = Some(vec!["10.0.0.0/8".parse().unwrap(); 16_500]);
        assert_eq!(fit(&mut plan), None);
    }

    #[test]
    fn what_is_beyond_is_left_out_and_told() {
        let mut plan =
            ServicePlan { ports: (0..5000).map(|number| port(number, 100)).collect(), ..Default::default() };
        plan.ports[1].sources = Some(vec!["10.0.0.0/8".parse().unwrap(); 17]);
        let text = fit(&mut plan).unwrap();
        assert!(text.contains("904 of 5000 ports, 36 of 100 endpoints of port default/web:0"), "{text}");
        assert!(text.ends_with("the same of 4095 more ports"), "{text}");
        let port = &plan.ports[1];
        assert_eq!((plan.ports.len(), port.cluster.len(), port.serving.len()), (PORTS, 64, 64));
        assert_eq!(port.sources.as_ref().unwrap().len(), 16);
        assert_eq!(port.external[..], endpoints(100)[99..], "the policy's own stays");
        assert!(port.cluster.contains(&port.external[0]));
    }
}
