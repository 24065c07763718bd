//! How much of a node's maps one Service may take.
//!
//! A user with permission to create a Service decides how many ports, endpoints and source ranges it has, on every node. The part beyond
//! these bounds is left out, always the same part of it, and reported. Clients in source ranges that are left out are denied.

use std::{collections::BTreeSet, net::SocketAddr, str::FromStr};

use super::plan::{Endpoints, PortPlan, ServicePlan};

/// The bounds of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Ports, each counted once per family.
    pub ports: usize,
    /// Endpoints, counted once per port and family.
    pub endpoints: usize,
    /// Addresses and node ports, counted once per port and family.
    pub addresses: usize,
    /// Source ranges, counted once per port and family.
    pub source_ranges: usize,
}

impl Default for Budget {
    fn default() -> Self {
        // 5,000 endpoints for each of 50 ports, or all for one port.
        Self { ports: 4096, endpoints: 1 << 18, addresses: 1 << 16, source_ranges: 1 << 16 }
    }
}

impl FromStr for Budget {
    type Err = String;

    /// `ports=100,source-ranges=1000`: those that are not named keep their defaults.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut budget = Self::default();
        for part in text.split(',') {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("`{part}` is not like ports=100"))?;
            let bound = match name {
                "ports" => &mut budget.ports,
                "endpoints" => &mut budget.endpoints,
                "addresses" => &mut budget.addresses,
                "source-ranges" => &mut budget.source_ranges,
                _ => {
                    return Err(format!("`{name}` is not one of ports, endpoints, addresses, source-ranges"));
                }
            };
            let count = value.parse().ok().filter(|count| *count > 0);
            *bound = count.ok_or_else(|| format!("`{value}` is not a number of {name} from 1 on"))?;
        }
        Ok(budget)
    }
}

/// Leaves out the part of a plan beyond the bounds; returns a description of it.
pub fn fit(plan: &mut ServicePlan, budget: Budget) -> Option<String> {
    let mut excess = Vec::new();
    let ports = plan.ports.len();
    if ports > budget.ports {
        plan.ports.truncate(budget.ports);
        excess.push(format!("{} of {ports} ports", ports - budget.ports));
    }
    // All ports of a Service have the same share: each as much as it would have in any order.
    let share = |bound: usize| bound / plan.ports.len().max(1);
    let (endpoints, addresses) = (share(budget.endpoints), share(budget.addresses));
    let ranges = share(budget.source_ranges);
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
        if beyond(port.frontends.len(), addresses, "addresses") {
            port.frontends.truncate(addresses);
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
    fn usual_services_fit() {
        let mut plan =
            ServicePlan { ports: (0..50).map(|number| port(number, 5000)).collect(), ..Default::default() };
        plan.ports[0].sources = Some(vec!["10.0.0.0/8".parse().unwrap(); 1000]);
        let before = plan.clone();
        assert_eq!(fit(&mut plan, Budget::default()), None);
        assert_eq!(plan, before);
        let mut plan = ServicePlan { ports: vec![port(0, 100)], ..Default::default() };
        plan.ports[0].sources = Some(vec!["10.0.0.0/8".parse().unwrap(); 16_500]);
        assert_eq!(fit(&mut plan, Budget::default()), None);
    }

    #[test]
    fn the_part_beyond_is_left_out_and_reported() {
        let mut plan =
            ServicePlan { ports: (0..5000).map(|number| port(number, 100)).collect(), ..Default::default() };
        plan.ports[1].sources = Some(vec!["10.0.0.0/8".parse().unwrap(); 17]);
        let text = fit(&mut plan, Budget::default()).unwrap();
        assert!(text.contains("904 of 5000 ports, 36 of 100 endpoints of port default/web:0"), "{text}");
        assert!(text.ends_with("the same of 4095 more ports"), "{text}");
        let port = &plan.ports[1];
        assert_eq!((plan.ports.len(), port.cluster.len(), port.serving.len()), (4096, 64, 64));
        assert_eq!(port.sources.as_ref().unwrap().len(), 16);
        assert_eq!(port.external[..], endpoints(100)[99..], "the policy's own stays");
        assert!(port.cluster.contains(&port.external[0]));
    }

    #[test]
    fn bounds_that_are_given() {
        let budget: Budget = "ports=2,source-ranges=3".parse().unwrap();
        assert_eq!(budget, Budget { ports: 2, source_ranges: 3, ..Budget::default() });
        let mut plan =
            ServicePlan { ports: (0..3).map(|number| port(number, 1)).collect(), ..Default::default() };
        plan.ports[0].sources = Some(vec!["10.0.0.0/8".parse().unwrap(); 2]);
        let text = fit(&mut plan, budget).unwrap();
        assert!(text.contains("1 of 3 ports, 1 of 2 source ranges"), "{text}");
        for wrong in
            ["", "ports", "ports=0", "ports=-1", "ports=x", "port=1", "ports=1,", "ports=1;endpoints=1"]
        {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
    }
}
